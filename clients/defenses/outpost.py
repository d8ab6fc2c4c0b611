"""Outpost: pruning and noise that are rarer the longer training goes on, and go where the risk is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.settings import Fraction, NonNegative, OpenFraction

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedsim.clients.defenses.base import Site
    from fedsim.protocol import Update


@dataclass(frozen=True)
class Outpost:
    """Perturbs the update with probability 1 / (1 + decay * round), and otherwise leaves it as it is.

    Source: Wang, Hugh, Li, "More than Enough is Too Much: Adaptive Defenses against Gradient Leakage in Production
    Federated Learning" (INFOCOM 2023), and its code in Plato. A perturbed update has

    1. in each tensor, the entries below the `ratio` quantile of that tensor's |g| set to 0;
    2. Gaussian noise of standard deviation noise * min(var(w), 1) on those entries whose Fisher information, estimated
       as g^2 (before step 1), is not below the (1 - share) quantile over all parameters. var(w) is the variance of the
       tensor's broadcast weights, the paper's measure of its risk; 0 for a tensor of one entry, or of equal ones.

    Departures: one coin is tossed a round and not for each local step, with rounds as the paper's iterations, and what
    is perturbed is the round's update, in whose units `noise` is (with one step of fedsgd, all this is the same).
    g^2 is taken entry by entry, as the paper's Fisher matrix has it; the code averages it over a tensor's first axis.

    ratio: in [0, 1). share: in [0, 1]; the largest entry gets noise whatever it is. The defaults are Plato's.
    """

    decay: NonNegative = 0.125
    noise: NonNegative = 0.8
    share: Fraction = 0.4
    ratio: OpenFraction = 0.8

    def perturb_at(self, update: Update, site: Site, rng: torch.Generator) -> tuple[Update, Mapping[str, Tensor]]:
        """The update, perturbed or not. Nothing is remembered. Draws: the coin, then noise for all tensors in order."""
        import torch

        from fedsim.clients.defenses.pruning import GradientPruning
        from fedsim.clients.defenses.selection import quantile
        from fedsim.protocol import Update

        if torch.rand((), generator=rng) >= 1 / (1 + self.decay * site.round):
            return update, {}
        # |g| in the place of g^2: the order is the same, and the square of a small float32 is 0.
        bound = quantile(torch.cat([g.abs().flatten() for g in update.tensors.values()]), 1 - self.share)
        pruned = GradientPruning(self.ratio).perturb(update, rng).tensors
        out = {}
        for name, g in update.tensors.items():
            noise = torch.randn(g.shape, generator=rng, dtype=g.dtype).to(g.device)
            std = self.noise * _risk(site.parameters[name])
            out[name] = noise.masked_fill_(g.abs() < bound, 0).mul_(std).add_(pruned[name])
        return Update(out), {}


def _risk(weights: Tensor) -> float:
    """min(var(w), 1), with the unbiased variance."""
    return min(float(weights.var()), 1.0) if weights.numel() > 1 else 0.0
