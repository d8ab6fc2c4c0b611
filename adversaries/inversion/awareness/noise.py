"""Additive noise: the likelihood of what was seen.

With t = g(x) + e, e independent and of standard deviation s, -log p(t | x) is, up to a constant,

    Gaussian: |t - g|^2 / (2 s^2),      Laplace: sqrt(2) |t - g|_1 / s      (Balunovic et al., ICLR 2022, section 4).

So the squared distance belongs to Gaussian noise and the absolute one to Laplace noise, and since all entries carry
the same noise, all weigh the same. (Weights by each tensor's share of signal, and targets shrunk by it, are worse: they
fit the large entries, but all say as much about the image as their derivative by it is long against s.) The cosine is
the Gaussian likelihood of a gradient of unknown length: it is right where the length is lost, and otherwise leaves out
what the length says.

The likelihood is put into the units of the objective that it replaces, so that priors keep their weights. Near the
truth 1 - cos is |t - g|^2 / (2 |g*|^2) with g* the clean gradient, and E|t|^2 = |g*|^2 + n s^2 over n entries gives
|g*|^2. That makes the factor of the negative log-likelihood s^2 / (|t|^2 - n s^2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedsim.adversaries.inversion import maps
from fedsim.adversaries.inversion.awareness.base import SCALE_FREE, Matched, Place

LEAST_SHARE = 0.01
"""Of |t|^2 that is taken for signal: the estimate may come out at or below 0."""


def gradient_noise(matched: Matched, settings: Mapping[str, Any], place: Place) -> Matched:
    """The distance is the likelihood's: squared for Gaussian noise, absolute for Laplace noise."""
    # Of clients that weigh the same, the mean of their noises; it is no longer Laplace noise then.
    std = float(settings["std"]) / place.unit / math.sqrt(place.clients)
    return likely(matched, "gaussian" if place.clients > 1 else settings.get("kind", "gaussian"), std, place)


def dp_sgd(matched: Matched, settings: Mapping[str, Any], place: Place) -> Matched:
    """Each image's gradient is clipped to max_grad_norm before the sum. Of one image in one step that can be followed,
    and noise_multiplier * max_grad_norm Gaussian noise is left; of more, how much each was scaled down is not known,
    nor then the length of the sum.
    """
    multiplier = 1.0 if settings.get("noise_multiplier") is None else float(settings["noise_multiplier"])
    bound = float(settings["max_grad_norm"])
    if settings.get("target_epsilon") is not None:
        return matched.saying(
            "the attack is not told how much noise target_epsilon took, and matches as if there were none"
        )
    if place.images > 1 or place.steps > 1:
        return matched.saying(
            "how much each image's gradient was scaled down is not known, nor so the length of their sum, and the "
            "angle is the likelihood of Gaussian noise on a gradient of unknown length: nothing is changed"
        )
    first = matched.target[0]
    limit = torch.tensor(bound, dtype=first.dtype, device=first.device)
    clipped = matched.mapping(maps.clipped, [limit]).saying("clips the guess's gradient, of one image, in the same way")
    return likely(clipped, "gaussian", multiplier * bound, place)


def likely(matched: Matched, kind: str, std: float, place: Place) -> Matched:
    """Match by the likelihood of noise of this standard deviation, in the units of the target."""
    if std == 0:
        return matched.saying("there is none")
    if not place.final:
        return matched.saying(f"what {' and '.join(place.later)} made of the noise is not known: nothing is changed")
    best = {"gaussian": "squared_l2", "laplace": "l1"}[kind]
    if matched.objective == best:
        return matched.saying(f"{best} is the likelihood of {kind} noise already")
    text = f"matches by {best}, the likelihood of {kind} noise, in the place of {matched.objective}"
    return replaced(matched, best, std, clean_square(matched, std)).saying(text)


def replaced(matched: Matched, best: str, std: float | Tensor, square: Tensor) -> Matched:
    """The likelihood in the place of the objective, in its units.

    best: squared_l2 or l1. std: of the noise. square: of the clean gradient's length.
    """
    # In units of the objective so far, what one unit of the negative log-likelihood is; then what one of the distance.
    per_likelihood = {**dict.fromkeys(SCALE_FREE, std**2 / square), "l1": std / math.sqrt(2)}
    factor = per_likelihood.get(matched.objective, 2 * std**2) * {"squared_l2": 0.5 / std**2, "l1": 2**0.5 / std}[best]
    first = matched.target[0]
    each = [torch.as_tensor(factor, dtype=first.dtype, device=first.device) for _ in matched.target]
    return replace(matched.counting(each), objective=best)


def clean_square(matched: Matched, std: float) -> Tensor:
    """What |t|^2 would be without the noise, over the entries that count."""
    masks = matched.masks or [torch.ones_like(value) for value in matched.target]
    square = torch.stack([(m * t * t).sum() for t, m in zip(matched.target, masks, strict=True)]).sum()
    entries = torch.stack([m.expand_as(t).sum() for t, m in zip(matched.target, masks, strict=True)]).sum()
    return torch.maximum(square - entries * std**2, LEAST_SHARE * square)
