"""What a natural batch is expected to be like. Images are (N, C, H, W), normalised; every prior is a scalar."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fedsim.adversaries.inversion.statistics import Pair

TINY = 1e-8
"""Under a root, whose slope at 0 has no bound."""


def total_variation(images: Tensor, p: float = 1.0, q: float = 1.0, absolute: bool = False) -> Tensor:
    """mean (|dx|^p + |dy|^p)^q, where dx and dy are differences of neighbours.

    p = q = 1: the anisotropic one, mean |dx| + mean |dy| (Geiping et al. 2020). p = 2, q = 1/2: the isotropic one
    (Rudin et al. 1992). absolute: of |images|, for encodings whose signs are random (InstaHide; Huang et al. 2021,
    section 4).
    """
    images = images.abs() if absolute else images
    across = (images[..., :, 1:] - images[..., :, :-1]).abs()
    down = (images[..., 1:, :] - images[..., :-1, :]).abs()
    if p < 1:
        across, down = across + TINY, down + TINY
    if p != 1:
        across, down = across.pow(p), down.pow(p)
    if q == 1:
        return across.mean() + down.mean()
    return (across[..., :-1, :] + down[..., :, :-1] + TINY).pow(q).mean()


def squared_norm(images: Tensor) -> Tensor:
    """mean x^2 (the l2 term of Yin et al., GradInversion, CVPR 2021, equation 9, as a mean)."""
    return images.square().mean()


def orthogonality(images: Tensor) -> Tensor:
    """mean over pairs of different images of (<x_i, x_j> / (C H W))^2; 0 for one image (Qian & Hansen 2020)."""
    count = len(images)
    if count == 1:
        return images.sum() * 0
    flat = images.flatten(1)
    products = (flat @ flat.T / flat.shape[1]).square()
    return (products.sum() - products.diagonal().sum()) / (count * (count - 1))


def statistics_distance(pairs: Iterable[tuple[Pair, Pair]]) -> Tensor:
    """R_BN = sum over layers of |mean - mu|_2 + |var - sigma^2|_2 (Yin et al., GradInversion, CVPR 2021, equation
    10).
    """
    total: Tensor | None = None
    for (mean, variance), (mu, sigma_squared) in pairs:
        term = torch.linalg.vector_norm(mean - mu) + torch.linalg.vector_norm(variance - sigma_squared)
        total = term if total is None else total + term
    if total is None:
        raise ValueError("there is no BatchNorm layer to compare")
    return total


def feature_distance(features: Tensor, wanted: Tensor) -> Tensor:
    """mean (features - wanted)^2, both (N, units): what reaches the last layer, and what the gradient says reached it.

    What is not finite in `wanted` is not known, and does not count.
    """
    return torch.where(torch.isfinite(wanted), features - wanted, 0).square().mean()


def group_consistency(guesses: Tensor) -> tuple[Tensor, Tensor]:
    """mean (x_r - mean over restarts)^2 for each of R restarts (Yin et al., equation 11), the mean taken as a constant.

    guesses: (R, N, C, H, W). Returns ((R,), its derivative of the shape of `guesses`). The paper aligns the restarts
    with one another first; here they are compared pixel by pixel. A restart that is not finite is no part of the mean.
    """
    fine = torch.isfinite(guesses).flatten(1).all(1).reshape(-1, *([1] * (guesses.dim() - 1)))
    mean = torch.where(fine, guesses, 0).sum(0, keepdim=True) / fine.sum().clamp(min=1)
    difference = guesses - mean
    return difference.square().flatten(1).mean(1), 2 * difference / difference[0].numel()


def epoch_order_invariance(images: Tensor, epochs: int) -> Tensor:
    """How much what each local epoch is thought to have used differs, whatever the order within it (Dimitrov et al.,
    "Data Leakage in Federated Averaging", TMLR 2022, section 4.3).

    images: (epochs * N, C, H, W), epoch by epoch. Of each epoch the mean and the maximum over its images are compared
    with those of the others: both are the same for every order.
    """
    by_epoch = images.unflatten(0, (epochs, -1))
    total = images.sum() * 0
    for summary in (by_epoch.mean(1), by_epoch.amax(1)):
        total = total + (summary - summary.mean(0, keepdim=True)).square().mean()
    return total
