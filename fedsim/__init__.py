"""fedsim: federated learning with Flower, watched by adversaries that one can swap."""

import os

# Flower reads both when it is first imported, which nothing below this package does earlier: a simulator phones nobody.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

__version__ = "0.1.0"
