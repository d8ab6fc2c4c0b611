"""What an attack makes of knowing the client's defenses.

A defense that is measured against an attacker who is unaware of it alone is not measured. Each rule here takes the
settings of one defense, which the threat model grants as "defenses", and changes what is matched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Matched:
    """What the objective matches: the target, and which of its entries count (None: all)."""

    target: Sequence[Tensor]
    masks: Sequence[Tensor] | None


def match(target: Sequence[Tensor], defenses: Sequence[Mapping[str, Any]]) -> Matched:
    """What to match, knowing the defenses in their order. Those that no rule is about change nothing.

    gradient_pruning: the zeros say nothing about the entries that they stand for, so only the entries that were kept
    are matched: in each tensor, the (1 - ratio) share of the largest. If noise came after the pruning, the largest
    entries are the best estimate of which ones were kept.
    """
    ratios = [float(one["ratio"]) for one in defenses if one["name"] == "gradient_pruning"]
    if not ratios:
        return Matched(target, None)
    return Matched(target, [_kept(value, max(ratios)) for value in target])


def _kept(value: Tensor, ratio: float) -> Tensor:
    size = value.abs().flatten()
    # Pruning keeps what is not below the interpolated quantile, which lies at ratio * (entries - 1), counted from 0.
    count = size.numel() - math.ceil(ratio * (size.numel() - 1))
    mask = torch.zeros_like(size)
    mask[size.topk(count).indices] = 1
    # A kept entry is not zero; without noise on top, a small tensor can have more zeros than the ratio says.
    return (mask * (size > 0)).reshape(value.shape)
