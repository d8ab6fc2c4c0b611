"""Outpost: pruning, and noise that differs from entry to entry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedsim.adversaries.inversion.awareness import hidden
from fedsim.adversaries.inversion.awareness.base import Matched, Place


def outpost(matched: Matched, settings: Mapping[str, Any], place: Place) -> Matched:
    """Of each tensor the kept entries alone, as under pruning; and an entry on which there is noise of standard
    deviation s counts tau^2 / (tau^2 + s^2), where tau^2 is the mean square of a kept entry.

    Where noise differs, the likelihood weighs each entry by 1 / s^2; tau stands for what remains where there is none.
    An entry gets noise if it is among the `share` largest of all: as good as it can be told, the largest that were
    seen. Its s is known from the broadcast weights. An update without the zeros of pruning was left as it was.
    """
    ratio, share, target = float(settings["ratio"]), float(settings["share"]), matched.target
    total = sum(value.numel() for value in target)
    zeros = sum(int((value == 0).sum()) for value in target)
    # In each tensor all below its quantile are 0, but for those among the `share` largest of all, which have noise.
    pruned = sum(math.ceil(ratio * (value.numel() - 1)) for value in target)
    if zeros < pruned - round(share * total) - 1 or (zeros == 0 and ratio > 0 and share < 1):
        return matched.saying("this update has not the zeros of a perturbed one, and is matched as it is")
    kept = [hidden.kept(value, ratio) for value in target]
    noisy = hidden.kept_of_all(target, 1 - share)
    squares = torch.stack([(k * t * t).sum() for k, t in zip(kept, target, strict=True)]).sum()
    tau = squares / torch.stack([k.sum() for k in kept]).sum().clamp(min=1)
    stds = [float(settings["noise"]) * _risk(w) / place.unit for w in place.parameters]
    shares = [1 - n * (s**2 / (tau + s**2)) for n, s in zip(noisy, stds, strict=True)]
    text = "matches the kept entries alone, and those with noise the less the more noise there is"
    return matched.hiding(kept).counting(shares).saying(text)


def _risk(weights: Tensor) -> Tensor:
    """min(var(w), 1), as the defense has it."""
    if weights.numel() == 1:
        return torch.zeros((), dtype=weights.dtype, device=weights.device)
    return weights.var().clamp(max=1)
