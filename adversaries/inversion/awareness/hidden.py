"""Defenses that leave entries out: the zeros that were sent instead say nothing, so the others alone are matched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedsim.adversaries.inversion import maps
from fedsim.adversaries.inversion.awareness.base import Matched, Place, left_over


def pruning(matched: Matched, settings: Mapping[str, Any], place: Place) -> Matched:
    """Only the entries that were kept are matched: the (1 - ratio) share of the largest, of each tensor or (scope =
    "global") of all together. If noise came after the pruning, the largest are the best estimate of which were kept.
    """
    ratio = float(settings["ratio"])
    if place.clients > 1:
        masks = _sent(matched.target)  # each client kept entries of its own
    elif settings.get("scope", "tensor") == "global":
        masks = kept_of_all(matched.target, ratio)
    else:
        masks = [kept(value, ratio) for value in matched.target]
    return matched.hiding(masks).saying(f"matches the kept entries alone, {_share(masks)} of all")


def sparsification(matched: Matched, settings: Mapping[str, Any], place: Place) -> Matched:
    """Only the entries that are not 0 are matched, and with `rescale` to what the guess's entries would be when sent:
    n / k of themselves. Under noise that came later, they are taken to be the largest k.
    """
    masks = _sent(matched.target)
    if "gradient_noise" in place.later and place.clients == 1:
        masks = [kept(value, float(settings["ratio"])) for value in matched.target]
    matched = matched.hiding(masks)
    if settings.get("rescale", True) and place.clients == 1:
        matched = matched.mapping(
            maps.scaled, [_rescaling(value, float(settings["ratio"])) for value in matched.target]
        )
    text = f"matches the entries that were sent alone, {_share(masks)} of all"
    return matched.saying(text + left_over(settings, place))


def soteria(matched: Matched, settings: Mapping[str, Any], place: Place) -> Matched:
    """The columns of the last layer's weight that are 0 do not count. Balunovic et al. (ICLR 2022) leave out the whole
    layer, but its other columns and its bias are as they were.
    """
    masks = [torch.ones((), dtype=value.dtype, device=value.device) for value in matched.target]
    key = f"{place.last}.weight"
    if key not in place.names:
        return matched.saying("the model has no last fully connected layer, and nothing was cut")
    number = place.names.index(key)
    weight = matched.target[number]
    masks[number] = (weight != 0).any(0, keepdim=True).to(weight.dtype).expand_as(weight).contiguous()
    cut = int((masks[number][0] == 0).sum())
    return matched.hiding(masks).saying(f"leaves out {cut} of {weight.shape[1]} columns of {key}, which are 0")


def kept(value: Tensor, ratio: float) -> Tensor:
    """1 for the entries of one tensor that pruning by its own quantile kept."""
    size = value.abs().flatten()
    # Pruning keeps what is not below the interpolated quantile, which lies at ratio * (entries - 1), counted from 0.
    count = size.numel() - math.ceil(ratio * (size.numel() - 1))
    mask = torch.zeros_like(size)
    mask[size.topk(count).indices] = 1
    # A kept entry is not zero; without noise on top, a small tensor can have more zeros than the ratio says.
    return (mask * (size > 0)).reshape(value.shape)


def kept_of_all(target: Sequence[Tensor], ratio: float) -> list[Tensor]:
    """The same by one quantile over all tensors together."""
    mask = kept(torch.cat([value.flatten() for value in target]), ratio)
    parts = mask.split([value.numel() for value in target])
    return [part.reshape(value.shape) for part, value in zip(parts, target, strict=True)]


def _sent(target: Sequence[Tensor]) -> list[Tensor]:
    return [(value != 0).to(value.dtype) for value in target]


def _rescaling(value: Tensor, ratio: float) -> Tensor:
    """n / k, as the defense has it."""
    total = value.numel()
    return torch.tensor(total / max(1, round((1 - ratio) * total)), dtype=value.dtype, device=value.device)


def _share(masks: Sequence[Tensor]) -> str:
    return f"{sum(float(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks):.2%}"
