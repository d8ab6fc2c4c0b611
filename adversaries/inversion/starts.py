"""The first guess, in normalised space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedsim.adversaries.inversion.victim import Victim
from fedsim.errors import InputError


def first_guess(kind: str, victim: Victim, count: int, rng: torch.Generator, patch: int, file: str | None) -> Tensor:
    """`count` images (count, C, H, W), float32, on the CPU.

    normal: N(0, 1). uniform: U(-1, 1). zeros: 0, the mean image. patterned: one square of `patch` pixels, drawn from
    U(-1, 1) for each image and repeated (Wei et al., ESORICS 2020, section 4). given: the images of `file`, an .npy of
    (N, C, H, W) in [0, 1].
    """
    shape = (count, *victim.shape[1:])
    if kind == "normal":
        guess = torch.randn(shape, generator=rng)
    elif kind == "uniform":
        guess = torch.rand(shape, generator=rng) * 2 - 1
    elif kind == "patterned":
        square = torch.rand((*shape[:2], patch, patch), generator=rng) * 2 - 1
        height, width = shape[2:]
        guess = square.repeat(1, 1, -(-height // patch), -(-width // patch))[..., :height, :width]
    elif kind == "given":
        guess = victim.normalise(_given(file, shape))
    else:
        guess = torch.zeros(shape)
    return guess.contiguous(memory_format=torch.channels_last)


def _given(file: str | None, shape: tuple[int, ...]) -> Tensor:
    if file is None:
        raise InputError('initial = "given" needs initial_file, an .npy file of images (N, C, H, W) in [0, 1]')
    try:
        images = torch.from_numpy(np.load(Path(file), allow_pickle=False)).float()
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"initial_file: {file}: cannot be read as an array of images: {error}") from None
    if tuple(images.shape) != shape:
        raise InputError(f"initial_file: {file}: has the shape {tuple(images.shape)}, but the guess has {shape}")
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise InputError(f"initial_file: {file}: has values outside [0, 1]")
    return images
