"""What many tests need: a small experiment on embedded data, changed as a test wants it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

# Before torch is imported, as fedsim's command line does: threads that wait for one another must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

from fedsim.experiment import Experiment
from fedsim.experiment_file import from_table

Make = Callable[..., Experiment]

# Two workers of the test runner on two cores: more threads would only wait for each other.
torch.set_num_threads(1)


def small_table(**sections: Any) -> dict[str, Any]:
    """A file's content: four clients with digits and an MLP. A given section replaces the keys that it names."""
    table: dict[str, Any] = {
        "seed": 3,
        "rounds": 2,
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [16]},
        "clients": {"count": 4, "algorithm": "fedsgd", "batch_size": 4},
        "server": {"learning_rate": 0.1},
    }
    for key, value in sections.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict) and "name" not in value:
            table[key] = {**table[key], **value}
        else:
            table[key] = value
    return table


@pytest.fixture
def small() -> Make:
    """`small(clients={"count": 2})` -> Experiment."""
    return lambda **sections: from_table(small_table(**sections))
