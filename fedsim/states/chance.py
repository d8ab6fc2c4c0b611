"""The global generators of Python, NumPy and torch. fedsim goes on with none of them, but a plugin's library may."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def global_generators() -> dict[str, Any]:
    """Their states, in this process."""
    kind, keys, *rest = np.random.get_state()
    return {"python": random.getstate(), "numpy": (kind, keys, *rest), "torch": torch.get_rng_state()}


def restore(states: dict[str, Any]) -> None:
    """Let them go on from there."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
