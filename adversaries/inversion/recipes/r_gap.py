"""The attack `r_gap`: closed-form recursion from the last layer to the image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from fedsim.adversaries.inversion.recipes.common import GRADIENT, one_job, several_images, several_steps
from fedsim.settings import Positive

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedsim.adversaries.base import Job, Observation, Reconstruction, Situation

POOR = 0.01
"""An objective above it is no longer explained by rounding."""


@dataclass(frozen=True)
class RGap:
    """Walks back from the last layer to one image, solving linear equations at each layer: seconds, no iterations.

    Source: Zhu, Blaschko, "R-GAP: Recursive Gradient Attack on Privacy" (ICLR 2021), algorithm 1, here for
    cross-entropy over any number of classes. It works on chains of convolutions, linear layers and activations that can
    be inverted, such as cnn6 and lenet. ReLU is walked through too, but where it gives 0 its equations are lost.

    The objective is the distance of the gradient of the image returned from the one seen, relative to the latter: about
    1e-6 of a perfect one. The notes tell, for each layer, its relative residual and its rank against its unknowns, and
    the objectives of all candidates: with two classes and no biases several images may have the very same gradient.
    The status is "underdetermined" where the equations of a layer leave its input open and the objective is above
    `POOR`; the smallest input is taken then.

    ridge: added to each layer's normal equations, as a share of their mean diagonal. It makes solvable what the
        equations leave open, with the smallest solution; a layer that they determine does not notice it.
    rank_report: find the rank of each layer's equations, and the index of the paper's rank analysis: 0 where every
        layer is determined, below 0 where not. Costs some more seconds on a large layer.
    """

    ridge: Positive = 1e-13
    rank_report: bool = True

    needs: ClassVar[frozenset[str]] = GRADIENT
    powers: ClassVar[frozenset[str]] = frozenset()

    def objection(self, situation: Situation) -> str | None:
        """It is one gradient of one image that is walked back."""
        return several_steps(situation) or several_images(situation)

    def objection_to(self, model: nn.Module, situation: Situation) -> str | None:
        """The first layer that cannot be walked back through, by name."""
        from fedsim.adversaries.inversion.closed_form import rgap

        return rgap.objection(model)

    def capture(self, seen: Observation) -> Iterable[Job]:
        """A job for each observation."""
        yield from one_job(seen)

    def attack(self, job: Job, device: torch.device, rng: torch.Generator) -> Reconstruction:
        """Recover the image. All in float64 on the CPU.

        Raises InputError for a model or a batch that it cannot work on, and for a gradient that says nothing.
        """
        import torch

        from fedsim.adversaries.base import Reconstruction
        from fedsim.adversaries.inversion.closed_form import rgap
        from fedsim.adversaries.inversion.victim import rebuild
        from fedsim.errors import InputError

        victim = rebuild(job.observations[0], torch.device("cpu"))
        against = rgap.objection(victim.model)
        if against is None and victim.shape[0] != 1:
            against = f"it works on one image, but the update was made from {victim.shape[0]}; set batch_size to 1"
        if against is not None:
            raise InputError(f"r_gap: {against}")
        layers = rgap.chain(victim.model) or []
        gradient = victim.gradient
        known = rgap.operators(layers, victim.parameters, victim.shape[1:])
        heads = rgap.heads(layers[-1][0], victim.parameters, gradient)
        tried: list[Reconstruction] = []
        for head in heads:
            found = rgap.recover(layers, known, gradient, head, self.ridge, self.rank_report)
            values = torch.from_numpy(found.values).reshape(victim.shape)
            images = victim.normalise.inverse(values.nan_to_num()).clamp(0, 1).float()
            objective = rgap.mismatch(
                victim.model, victim.parameters, gradient, victim.normalise(images.double()), head.target
            )
            notes: dict[str, Any] = {
                "layers": list(found.layers),
                "head_misfit": head.misfit,
                "outside_activation_range": dict(found.outside),
            }
            status = "done" if bool(values.isfinite().all()) else "nan"
            if self.rank_report:
                notes["rank_index"] = rgap.rank_index(found.layers, len(known))
                notes["underdetermined"] = [one["layer"] for one in found.layers if one["rank"] < one["unknowns"]]
                if notes["underdetermined"] and objective > POOR and status == "done":
                    status = "underdetermined"
            label = torch.tensor([head.label])
            tried.append(Reconstruction(images, label, objective, len(known), status=status, notes=notes))
        best = min(tried, key=lambda one: one.objective)
        # Several that are equally small: the gradient itself does not tell these images apart.
        return replace(best, notes={**best.notes, "candidates": [one.objective for one in tried]})
