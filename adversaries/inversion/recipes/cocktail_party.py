"""The attack `cocktail_party`: independent component analysis on the gradient of a fully connected layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fedsim.adversaries.inversion.recipes.common import GRADIENT, one_job, several_steps
from fedsim.settings import Count, NonNegative, Positive

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedsim.adversaries.base import Job, Observation, Reconstruction, Situation


@dataclass(frozen=True)
class CocktailParty:
    """Separates the inputs that the gradient of the model's first fully connected layer mixes.

    Source: Kariyappa et al., "Cocktail Party Attack" (ICML 2023). Where that layer sees the image itself
    (`mlp`) its inputs are the images. Where it stands behind convolutions (`convnet6`, `lenet`) they are features, from
    which images are then found by feature inversion. No labels are needed, and the sum of several clients'
    gradients is a mixture like any other.

    Different from the paper by default: edges are whitened instead of pixels (`domain`), the decorrelation is relaxed
    (`relax`), valid pixels or features are a prior (`box`), and sign and scale come from the bias's gradient instead of
    a stretch of every image to [0, 1]. The negentropy is off, as in the published code; the prior on edges
    does its work. `domain = "values"`, decorrelation = 1.47, temperature = 12.4, relax = 1, tv = 3.1, box = 0,
    step_size = 0.001 and iterations = 25000 are the published settings for Tiny-ImageNet.

    iterations: Adam steps on the unmixing matrix. step_size: the first of them; they fall to 0 along a half cosine.
    restarts: trials from random rotations; the one with the smallest objective is returned.
    domain: what is whitened, `edges` (differences of neighbouring pixels) or `values`.
    tv: the weight of total variation, of unmixed signals whose whitened form has variance 1. Of features that are no
        maps, the weight of twice the mean absolute value.
    negentropy: the weight of (E[log cosh s] - E[log cosh normal])^2, which is about 0.1 at most.
    decorrelation, temperature: weight and T of exp(T |cos|) - 1 over pairs of unmixing vectors.
    relax: what the weight of decorrelation is multiplied by, gradually, from the first to the last step.
    box: the weight, at the last step, of what lies outside the range of valid pixels (or, of features that are never
        negative, below 0; 5 separates those of convnet6 better). Needs the bias's gradient.
    scale: `bias` takes sign and scale from the bias's gradient; `box` takes those of most contrast among valid pixels.
    feature_iterations, feature_step_size, feature_tv: of feature inversion: Adam steps, the first of them in units of
        the normalised image, and the weight of total variation beside 1 - cosine.
    """

    iterations: Count = 2000
    step_size: Positive = 0.02
    restarts: Count = 1
    domain: Literal["edges", "values"] = "edges"
    tv: NonNegative = 0.5
    negentropy: NonNegative = 0.0
    decorrelation: NonNegative = 0.1
    temperature: Positive = 6.0
    relax: Positive = 0.05
    box: NonNegative = 0.5
    scale: Literal["bias", "box"] = "bias"
    feature_iterations: Count = 500
    feature_step_size: Positive = 0.1
    feature_tv: NonNegative = 0.3

    needs: ClassVar[frozenset[str]] = GRADIENT
    powers: ClassVar[frozenset[str]] = frozenset()
    presumes: ClassVar[dict[str, str]] = {"the batch's images are independent": ""}

    def objection(self, situation: Situation) -> str | None:
        """Why it cannot work on these updates: they have to be one gradient."""
        return several_steps(situation)

    def objection_to(self, model: nn.Module, situation: Situation) -> str | None:
        """Why it cannot work on this model and batch."""
        from fedsim.adversaries.inversion.closed_form import cocktail_party

        sizes = situation.batch_sizes
        return cocktail_party.unfit(model, sum(sizes) if situation.aggregate else max(sizes, default=1))

    def capture(self, seen: Observation) -> Iterable[Job]:
        """A job for each observation."""
        return one_job(seen)

    def attack(self, job: Job, device: torch.device, rng: torch.Generator) -> Reconstruction:
        """The batch, as well as it can be separated. Raises InputError where the model does not fit."""
        from fedsim.adversaries.inversion.closed_form import cocktail_party

        return cocktail_party.recover(self, job.observations[0], device, rng)
