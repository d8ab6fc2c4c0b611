"""Defenses that leave each entry one of a few values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedsim.adversaries.inversion import maps
from fedsim.adversaries.inversion.awareness.base import Matched, Place, left_over
from fedsim.adversaries.inversion.awareness.noise import replaced
from fedsim.adversaries.inversion.objectives import squared_length

INNER = 0.25
"""How far from the value that was seen nothing counts under rounding to the nearest, in steps of the grid."""

FLOOR = 0.1
"""Of the mean variance of rounding: what is taken for unexplained even where rounding changed nothing."""


def sign_compression(matched: Matched, settings: Mapping[str, Any], place: Place) -> Matched:
    """What is matched is a smooth sign of the guess's gradient, with scale = "mean" times the mean of its size."""
    if settings.get("scale", "mean") == "mean":
        matched = matched.mapping(maps.mean_sized_signs, [])
    else:
        matched = matched.mapping(maps.smooth_signs, [])
        if place.unit != 1:
            one = [torch.tensor(1 / place.unit, dtype=t.dtype, device=t.device) for t in matched.target]
            matched = matched.mapping(maps.scaled, one)
    text = "matches the signs by a smooth sign of the guess's gradient"
    return matched.saying(text + left_over(settings, place))


def quantisation(matched: Matched, settings: Mapping[str, Any], place: Place) -> Matched:
    """Rounding as noise whose variance v differs from tensor to tensor, with which their squared distances are weighed:
    Gaussian noise of these variances has the likelihood sum |t - g|^2 / (2 v). With w the distance of two values of the
    grid, v = w^2 / 12 for rounding to the nearest, and p (1 - p) w^2 for stochastic rounding of what lies the share p
    of the way: w^2 / 6 in the mean over p, but about w |g| where |g| is far below w.

    What is rounded to the nearest lies within w / 2 of t, and nothing more is known of it. So only what is further than
    w / 4 from t counts: with w / 2 the guess would end where it enters the cells, at the edge of what is possible.
    """
    if not place.final:
        return matched.saying(f"the grid is not known after {' and '.join(place.later)}: nothing is changed")
    widths = [grid(value, settings) for value in matched.target]
    nearest = settings["rounding"] == "nearest"
    if nearest:
        matched = matched.mapping(maps.beyond_cells, [INNER * width for width in widths])
    variances = [rounding(value, width, nearest) for value, width in zip(matched.target, widths, strict=True)]
    entries = torch.tensor([float(t.numel()) for t in matched.target], device=matched.target[0].device)
    every = torch.stack(variances).float()
    known = torch.isfinite(every)
    mean = (torch.where(known, every, 0) * entries).sum() / (known * entries).sum().clamp(min=1)
    if not bool(mean > 0):
        return matched.saying("nothing was lost")
    shares = [
        rest / (rest + v) for v, rest in zip(variances, [FLOOR * mean.to(v.dtype) for v in variances], strict=True)
    ]
    matched = matched.counting(shares)
    square = squared_length(matched.target, [1.0] * len(shares), matched.masks)
    matched = replaced(matched, "squared_l2", mean.sqrt(), square)
    text = "weighs each tensor by the variance of its rounding"
    if nearest:
        text += ", and counts what lies outside the inner half of each rounding cell"
    return matched.saying(text + left_over(settings, place))


def grid(value: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """The distance of two values of a tensor's grid, a scalar: the largest entry over the number of levels, or, where
    the norm is not that of an entry, the smallest that is not 0. Infinite where all are 0, which leaves it open then.
    """
    size = value.abs()
    if settings["norm"] == "max":
        return size.max() / (2 ** (int(settings["bits"]) - 1) - 1)
    return torch.where(size > 0, size, torch.inf).min()


def rounding(value: Tensor, width: Tensor, nearest: bool) -> Tensor:
    """The variance of the rounding of a tensor's entries, a scalar."""
    if nearest:
        return width.square() / 12
    # Where all entries are 0 on a grid that is not known, nothing is known: 0 times infinity must not be that.
    return torch.where(torch.isinf(width), width, width * torch.minimum(value.abs().mean(), width / 6))
