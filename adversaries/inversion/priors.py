"""What a natural batch is expected to be like."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fedsim.adversaries.inversion.statistics import Pair


def total_variation(images: Tensor) -> Tensor:
    """mean |dx| + mean |dy| over a batch (N, C, H, W), a scalar (anisotropic; as in Geiping et al. 2020)."""
    across = (images[..., :, 1:] - images[..., :, :-1]).abs().mean()
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    return across + down


def statistics_distance(pairs: Iterable[tuple[Pair, Pair]]) -> Tensor:
    """R_BN = sum over layers of |mean - mu|_2 + |var - sigma^2|_2 (Yin et al., GradInversion, CVPR 2021). A scalar."""
    total: Tensor | None = None
    for (mean, variance), (mu, sigma_squared) in pairs:
        term = torch.linalg.vector_norm(mean - mu) + torch.linalg.vector_norm(variance - sigma_squared)
        total = term if total is None else total + term
    if total is None:
        raise ValueError("there is no BatchNorm layer to compare")
    return total
