"""fedsim: federated learning with Flower, watched by adversaries that one can swap."""

__version__ = "0.1.0"
