"""A small run for sinks: its experiment, its folder, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedsim.experiment import Experiment
from fedsim.experiment_file import from_table
from fedsim.runs import Dropout, RoundRecord, RunFolder

LAST = 4
"""Its last round."""


@pytest.fixture(scope="session")
def record() -> Callable[[int], RoundRecord]:
    """`record(3)` -> what is recorded of round 3."""
    return lambda number: RoundRecord(
        number,
        (0, 1),
        (Dropout(2, "left"),),
        train_loss=1 / (number + 1),
        test_accuracy=number / 10,
        seconds=0.5,
        epsilon=float("inf"),
        secure={"mode": "ideal", "survivors": 2, "clipped": 0},
    )


@pytest.fixture(scope="session")
def line() -> Callable[..., dict[str, Any]]:
    """`line(3)` -> an attack on client 0 in round 3."""
    return lambda number, **changed: {
        "adversary": "geiping",
        "client": 0,
        "clients": [0],
        "round": number,
        "status": "done",
        "psnr": 20.0 + number,
        "ssim": 0.5,
        "lpips": None,
        "seconds": 2.5,
        "picture": f"reconstructions/r{number}.png",
        **changed,
    }


@pytest.fixture(scope="session")
def made() -> Callable[..., Experiment]:
    """`made("tensorboard")` -> an experiment with that sink."""
    return lambda *sinks: from_table(
        {"rounds": LAST, "data": "digits", "model": {"name": "mlp", "hidden": [16]}, "logging": {"sinks": list(sinks)}}
    )


@pytest.fixture(scope="session")
def new_folder() -> Callable[[Path], RunFolder]:
    """A run folder at a path, with pictures."""

    def make(path: Path) -> RunFolder:
        run = RunFolder.create(path)
        for number in range(LAST + 1):
            Image.new("RGB", (6, 4), (40 * number, 0, 255)).save(run.reconstructions / f"r{number}.png")
        return run

    return make
