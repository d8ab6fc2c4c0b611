"""An adversary and a defense for fedsim: frozen dataclasses whose fields are their settings in an experiment file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedsim.adversaries.base import Job, Observation, Reconstruction
from fedsim.settings import Fraction

if TYPE_CHECKING:  # an experiment file is checked before torch is imported
    import torch

    from fedsim.protocol import Update


@dataclass(frozen=True)
class Gray:
    """Guesses an even gray for every image: the floor that an attack has to beat.

    Source: none; there is nothing to it.
    """

    level: Fraction = 0.5

    # What it must see or know. It counts the images, so it needs to be told how many there are.
    needs: ClassVar[frozenset[str]] = frozenset({"global_model", "num_examples"})
    powers: ClassVar[frozenset[str]] = frozenset()

    def capture(self, seen: Observation) -> Iterable[Job]:
        """One job for each observation."""
        yield Job((seen,))

    def attack(self, job: Job, device: torch.device, rng: torch.Generator) -> Reconstruction:
        """The guess."""
        import torch

        facts = job.observations[0].facts
        images = torch.full((facts["num_examples"], *facts["image_shape"]), self.level)
        return Reconstruction(images, labels=None, objective=0.0, iterations=0)


@dataclass(frozen=True)
class SignOnly:
    """Sends the sign of each entry, times the mean magnitude of its tensor.

    Source: Bernstein et al., "signSGD: Compressed Optimisation for Non-Convex Problems" (ICML 2018).
    """

    def perturb(self, update: Update, rng: torch.Generator) -> Update:
        """The signs."""
        return update.map(lambda g: g.sign() * g.abs().mean())
