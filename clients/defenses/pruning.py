"""Gradient pruning: send the large entries of each tensor, zero the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.settings import OpenFraction

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedsim.protocol import Update


@dataclass(frozen=True)
class GradientPruning:
    """Sets to 0, in each parameter tensor by itself, the entries with |g| < quantile(|g|, ratio).

    Source: GradPrune as in Huang et al. (NeurIPS 2021), after Zhu et al. (DLG, NeurIPS 2019).

    ratio: the fraction to remove, in [0, 1). The quantile is interpolated linearly, entries equal to it stay.
    """

    ratio: OpenFraction = 0.9

    def perturb(self, update: Update, rng: torch.Generator) -> Update:
        """The pruned update."""
        return update.map(self._prune)

    def _prune(self, g: Tensor) -> Tensor:
        size = g.abs()
        return g * (size >= quantile(size.flatten(), self.ratio))


def quantile(values: Tensor, ratio: float) -> Tensor:
    """The linearly interpolated quantile, for tensors of any size (`torch.quantile` stops at 16 million entries)."""
    position = ratio * (values.numel() - 1)
    lower = int(position)
    # kthvalue counts from 1. Two selections cost less than a sort.
    low = values.kthvalue(lower + 1).values
    high = values.kthvalue(min(lower + 2, values.numel())).values
    return low + (high - low) * (position - lower)
