"""Clipping the norm of the update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedsim.settings import Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedsim.protocol import Update


@dataclass(frozen=True)
class GradientClipping:
    """Scales the update down to an L2 norm of at most `max_norm`; a smaller one is left as it is.

    Source: Pascanu et al. (ICML 2013); in federated learning, McMahan et al. (ICLR 2018).

    scope: `global`, over all parameters together, or `tensor`, each parameter tensor by itself.
    """

    max_norm: Positive = 1.0
    scope: Literal["global", "tensor"] = "global"

    def perturb(self, update: Update, rng: torch.Generator) -> Update:
        """The clipped update."""
        if self.scope == "global":
            factor = self._factor(update.norm())
            return update.map(lambda g: g * factor)
        return update.map(lambda g: g * self._factor(g.norm()))

    def _factor(self, norm: Tensor) -> Tensor:
        # A norm of zero must not divide; clamping the norm from below by max_norm gives the factor min(1, C / norm).
        return self.max_norm / norm.clamp(min=self.max_norm)
