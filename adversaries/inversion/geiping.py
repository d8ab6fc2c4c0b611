"""The attack `geiping`: its settings, what it needs, and how the parts are put together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fedsim.settings import Count, NonNegative, Positive

if TYPE_CHECKING:
    import torch

    from fedsim.adversaries.base import Job, Observation, Reconstruction

BatchNormMode = Literal["none", "exact", "own_statistics", "infer", "proxy"]


@dataclass(frozen=True)
class Geiping:
    """Minimises 1 - cosine(gradient of the guess, gradient seen) + tv * TV + bn_prior * R_BN with signed Adam.

    Source: Geiping et al., "Inverting Gradients" (NeurIPS 2020), equation 4, with the BatchNorm prior and the modes of
    Huang et al. (NeurIPS 2021), section 3.

    iterations: steps of each trial; the step size falls to a tenth at 3/8, 5/8 and 7/8 of them.
    step_size: of Adam, in units of the normalised image.
    tv: the weight of total variation. The default suits photographs; on digits without a defense 0 does better.
    bn_prior: the weight of R_BN.
    batchnorm: what the attack does at the model's BatchNorm layers.
        none: the model has none.
        exact: normalise the guess by the private batch's statistics, which are also the prior's.
        own_statistics: normalise the guess by its own statistics; the private batch's are the prior's (so GradAttack).
        infer: normalise the guess by its own statistics; the running ones are the prior's.
        proxy: normalise the guess by the running statistics; no prior is needed.
    labels: `known`, or inferred by `idlg` (Zhao et al. 2020; exact for a batch of one, an estimate above).
    initial: the first guess, drawn from N(0, 1) or U(-1, 1) in normalised space, or zeros.
    restarts: trials from different first guesses; the one with the smallest objective is returned.
    aware: make use of knowing the client's defenses (see awareness.py). Needs "defenses".
    """

    iterations: Count = 4800
    step_size: Positive = 0.1
    tv: NonNegative = 0.01
    bn_prior: NonNegative = 0.001
    batchnorm: BatchNormMode = "none"
    labels: Literal["known", "idlg"] = "known"
    initial: Literal["normal", "uniform", "zeros"] = "normal"
    restarts: Count = 1
    aware: bool = False

    powers: ClassVar[frozenset[str]] = frozenset()

    @property
    def needs(self) -> frozenset[str]:
        """The gradient and the model, and whatever the settings call for."""
        needs = {"global_model", "update", "num_examples"}
        if self.labels == "known":
            needs.add("labels")
        if self.batchnorm in ("exact", "own_statistics"):
            needs.add("batch_statistics")
        if self.batchnorm in ("infer", "proxy"):
            needs.add("running_statistics")
        if self.aware:
            needs.add("defenses")
        return frozenset(needs)

    def objection(self, has_batchnorm: bool | None) -> str | None:
        """Why these settings do not fit a model with or without BatchNorm (None: not known yet)."""
        if has_batchnorm is False and self.batchnorm != "none":
            statistics = next(item for item in self.needs if item.endswith("_statistics"))
            return (
                f'batchnorm = "{self.batchnorm}" works with {statistics}, but the model has no BatchNorm; '
                'use batchnorm = "none"'
            )
        if has_batchnorm and self.batchnorm == "none":
            return 'batchnorm = "none", but the model has BatchNorm; choose exact, own_statistics, infer or proxy'
        return None

    def capture(self, seen: Observation) -> Iterable[Job]:
        """A job for each observation."""
        from fedsim.adversaries.base import Job

        yield Job((seen,))

    def attack(self, job: Job, device: torch.device, rng: torch.Generator) -> Reconstruction:
        """The batch, as well as it can be found. Raises InputError where the mode and the model do not fit."""
        # Here, not above: the settings are checked before torch is imported.
        from fedsim.adversaries.inversion import recipe

        return recipe.invert(self, job.observations[0], device, rng)
