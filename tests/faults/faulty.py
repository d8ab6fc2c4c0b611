"""Words that the tests of faults share."""

from __future__ import annotations

import os
from collections.abc import Callable

WHOLE = bool(os.environ.get("FEDSIM_WHOLE"))
"""Whether all of the table is tried, or the short part that every test run has."""

Tally = Callable[..., None]
"""Notes what a test tries: a kind of fault, and how many of it (1, if not said)."""
