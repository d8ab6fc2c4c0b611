"""Gradient pruning: send the large entries, zero the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedsim.settings import OpenFraction

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedsim.protocol import Update


@dataclass(frozen=True)
class GradientPruning:
    """Sets to 0 the entries with |g| < quantile(|g|, ratio). Those of normalisation layers too.

    Source: GradPrune as in Huang et al. (NeurIPS 2021), after Zhu et al. (DLG, NeurIPS 2019).

    ratio: the fraction to remove, in [0, 1). The quantile is interpolated linearly, entries equal to it stay.
    scope: `tensor`, a quantile for each parameter tensor, as those papers have it; `global`, one quantile over all
        parameters together (global top-k), with which a tensor of small entries may vanish altogether.
    """

    ratio: OpenFraction = 0.9
    scope: Literal["tensor", "global"] = "tensor"

    def perturb(self, update: Update, rng: torch.Generator) -> Update:
        """The pruned update."""
        from fedsim.clients.defenses.selection import quantile

        if self.scope == "tensor":
            return update.map(lambda g: _keep(g, quantile(g.abs().flatten(), self.ratio)))
        import torch

        threshold = quantile(torch.cat([g.abs().flatten() for g in update.tensors.values()]), self.ratio)
        return update.map(lambda g: _keep(g, threshold))


def _keep(g: Tensor, threshold: Tensor) -> Tensor:
    import torch

    # hardshrink zeroes |g| <= bound in one pass; the next number below the threshold as bound leaves |g| = threshold.
    bound = torch.nextafter(threshold, torch.full_like(threshold, -torch.inf))
    return torch.nn.functional.hardshrink(g, float(bound))
