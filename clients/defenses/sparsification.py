"""Random sparsification: a random part of the update is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.errors import SettingError
from fedsim.settings import OpenFraction

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedsim.clients.defenses.base import Site
    from fedsim.protocol import Update


@dataclass(frozen=True)
class RandomSparsification:
    """Keeps some of each tensor's entries, every choice of that many being equally likely, and zeroes the rest.

    Source: the random mask of Konecny et al. (2016), section 2; unbiased as in Wangni et al. (NeurIPS 2018), whose
    probabilities are all the same here ("rand-k").

    ratio: the fraction to remove, in [0, 1). Of n entries k = round((1 - ratio) * n) stay, and at least one.
    rescale: whether those are multiplied by n / k, so that the mean over the draws is the update.
    error_feedback: whether what is left out of an update is added to the next. Only with `rescale = false`.
    """

    ratio: OpenFraction = 0.9
    rescale: bool = True
    error_feedback: bool = False

    def check(self) -> None:
        """Raises SettingError for error feedback on rescaled entries: what they gain would be taken back."""
        if self.error_feedback and self.rescale:
            raise SettingError(
                "defense random_sparsification",
                "error_feedback",
                "works on entries as they are; set rescale = false, or leave error_feedback out",
            )

    def perturb_at(self, update: Update, site: Site, rng: torch.Generator) -> tuple[Update, Mapping[str, Tensor]]:
        """The sparse update, and with error feedback the residuals. Draws are made on the CPU, in order."""
        from fedsim.clients.defenses.feedback import compressed

        return compressed(update, site.memory, lambda g: self._sparsify(g, rng), self.error_feedback)

    def _sparsify(self, g: Tensor, rng: torch.Generator) -> Tensor:
        import torch

        from fedsim.clients.defenses.selection import smallest

        total = g.numel()
        kept = max(1, round((1 - self.ratio) * total))
        # The k smallest of n draws are a random choice of k; a permutation takes three times as long on a large tensor.
        # In float64, where two draws hardly ever are the same.
        draws = torch.rand(total, generator=rng, dtype=torch.float64)
        sparse = g * (draws <= smallest(draws, kept - 1)[0]).view(g.shape).to(g.device)
        return sparse.mul_(total / kept) if self.rescale else sparse
