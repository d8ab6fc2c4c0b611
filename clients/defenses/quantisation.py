"""Quantisation: every entry moves to one of a few values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedsim.clients.defenses.base import Site
    from fedsim.protocol import Update


@dataclass(frozen=True)
class Quantisation:
    """Moves each entry of a tensor to one of the values j * norm / s, j = -s, ..., s, where s = 2^(bits - 1) - 1.

    Source: QSGD, Alistarh et al. (NeurIPS 2017), section 3.1. `norm` is of that tensor, and 0 stays 0. With 2 bits
    and the largest entry as norm it is TernGrad (Wen et al., NeurIPS 2017).

    bits: 2 to 16, the sign included. What the norm costs, and QSGD's entropy code, are not simulated.
    rounding: `stochastic`, to one of the two neighbours on the grid, at random and unbiased: |g| * s / norm = l + p
        with a whole l goes to l + 1 with probability p, else to l; `nearest`, halves to even, without randomness.
    norm: `max`, the largest |g|, or `l2`, the Euclidean norm, which leaves most entries of a large tensor below the
        first step of the grid (with `nearest` they are all sent as 0).
    error_feedback: whether what is left out of an update is added to the next. The theory asks for a compressor that
        comes nearer to g than 0 is: `nearest` with `max` always does, stochastic rounding on a coarse grid does not.
    """

    bits: Annotated[int, Field(ge=2, le=16)] = 8
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    norm: Literal["max", "l2"] = "max"
    error_feedback: bool = False

    def perturb_at(self, update: Update, site: Site, rng: torch.Generator) -> tuple[Update, Mapping[str, Tensor]]:
        """The quantised update, and with error feedback the residuals. Draws are made on the CPU, in order."""
        from fedsim.clients.defenses.feedback import compressed

        return compressed(update, site.memory, lambda g: self._quantise(g, rng), self.error_feedback)

    def _quantise(self, g: Tensor, rng: torch.Generator) -> Tensor:
        import torch

        level = g.abs()
        norm = level.max() if self.norm == "max" else torch.linalg.vector_norm(g)
        if not norm > 0:
            return torch.zeros_like(g)
        top = 2 ** (self.bits - 1) - 1
        # Divided first: norm / s may be too small a number for float32. At most 1, whatever the last bit says.
        # In place from here on, for new memory costs more than the arithmetic.
        level.div_(norm).clamp_(max=1).mul_(top)
        if self.rounding == "nearest":
            level.round_()
        else:
            below = level.floor()
            draw = torch.rand(g.shape, generator=rng, dtype=g.dtype).to(g.device)
            level = below.add_(draw.lt_(level.sub_(below)))
        return level.copysign_(g).mul_(norm / top)
