"""Additive noise on the update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedsim.settings import NonNegative

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedsim.protocol import Update


@dataclass(frozen=True)
class GradientNoise:
    """Adds independent noise of standard deviation `std` to every entry of the update.

    Source: Zhu et al. (DLG, NeurIPS 2019), section 5.1. It states no privacy guarantee; for one, see DP training.

    kind: `gaussian`, or `laplace` (scale std / sqrt(2), so that `std` means the same for both).
    std: in the units of the update (for fedsgd, of the gradient).
    """

    kind: Literal["gaussian", "laplace"] = "gaussian"
    std: NonNegative = 0.01

    def perturb(self, update: Update, rng: torch.Generator) -> Update:
        """The noisy update. Draws are made on the CPU, tensor by tensor in the order of the parameters."""
        return update.map(lambda g: g + self._draw(g, rng))

    def _draw(self, g: Tensor, rng: torch.Generator) -> Tensor:
        import torch

        if self.kind == "gaussian":
            noise = torch.randn(g.shape, generator=rng, dtype=g.dtype) * self.std
        else:
            # A Laplace variable is the difference of two exponential ones of the same scale.
            pair = torch.empty(2, *g.shape, dtype=g.dtype).exponential_(1.0, generator=rng)
            noise = (pair[0] - pair[1]) * (self.std / 2**0.5)
        return noise.to(g.device)
