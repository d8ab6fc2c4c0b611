"""Run a recipe on what was seen, and judge its answer. No test is in here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim import metrics
from fedsim.adversaries.base import Job, Observation, Reconstruction
from fedsim.adversaries.inversion.recipes.base import Inversion
from fedsim.protocol import Batch

CPU = torch.device("cpu")


def attack(settings: Inversion, seen: Observation, seed: int = 0) -> Reconstruction:
    (job,) = settings.capture(seen)
    assert job == Job((seen,))
    return settings.attack(job, CPU, torch.Generator().manual_seed(seed))


def attack_many(settings: Inversion, seen: Sequence[Observation], seeds: Sequence[int]) -> list[Reconstruction]:
    return settings.attack_many([Job((one,)) for one in seen], CPU, [torch.Generator().manual_seed(s) for s in seeds])


def quality(found: Reconstruction, batch: Batch) -> float:
    """The PSNR in dB of the worst image."""
    assert found.images is not None
    return float(metrics.psnr(found.images[metrics.match(found.images, batch.images)], batch.images).min())


def starting_at(images: Tensor, folder: Path) -> dict[str, Any]:
    """Settings with which the first guess is these images and nothing else than the objective counts: what `history`
    says of step 0 is then the objective at these images.
    """
    file = folder / "start.npy"
    np.save(file, images.numpy())
    return {
        "initial": "given",
        "initial_file": str(file),
        "iterations": 1,
        "engine": "eager",
        "tv": 0.0,
        "bn_prior": 0.0,
    }


def at_start(found: Reconstruction) -> float:
    assert found.history[0][0] == 0
    return found.history[0][1]
