"""MixUp: train on mixtures of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fedsim.clients.defenses import mixing
from fedsim.settings import Fraction

if TYPE_CHECKING:
    import torch

    from fedsim.clients.defenses.base import Mixed, Pool
    from fedsim.protocol import Batch

_OWNER = "defense mixup"


@dataclass(frozen=True)
class MixUp:
    """Replaces each image by a mixture with k - 1 others of the same client, and its label by the same mixture.

    Source: Zhang et al. (ICLR 2018), with k images and bounded coefficients as in Huang et al. (NeurIPS 2021).
    Partners and coefficients are drawn anew for every batch. A client needs k images.

    k: images in a mixture, the image itself included.
    law: of the coefficients. `dirichlet`: Dirichlet(3, 1, ..., 1), the 3 for the image itself; `half_normal`:
        |N(0, 1)| divided by the sum.
    upper: the largest coefficient; others are redrawn. Above 1/k.
    """

    k: Annotated[int, Field(ge=2)] = 4
    law: mixing.Law = "dirichlet"
    upper: Fraction = 0.65

    def check(self) -> None:
        """Raises SettingError for an upper bound that no coefficients meet."""
        mixing.check_upper(_OWNER, self.k, self.upper)

    def images_needed(self) -> int:
        """How many images a client must have."""
        return self.k

    def mix(self, batch: Batch, pool: Pool, rng: torch.Generator) -> Mixed:
        """The mixed batch, its own images first in every row. Raises InputError if the client has too few images."""
        weights = mixing.coefficients(len(batch), self.k, self.law, self.upper, rng)
        return mixing.blend(_OWNER, batch, pool, weights, rng)
