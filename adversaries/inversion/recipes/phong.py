"""The first attack on a gradient: divide, and there is the image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedsim.adversaries.inversion.recipes.common import GRADIENT, one_job, several_steps
from fedsim.settings import OpenFraction, Positive

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedsim.adversaries.base import Job, Observation, Reconstruction, Situation


@dataclass(frozen=True)
class Phong:
    """Reads images off the gradient of a fully connected first layer: rows of dL/dW over dL/db.

    Phong, Aono, Hayashi, Wang, Moriai, "Privacy-Preserving Deep Learning via Additively Homomorphic Encryption" (IEEE
    TIFS 2018; section III), and, for batches, the row division behind Lemma B.1 of Huang et al.,
    "Evaluating Gradient Inversion Attacks and Defenses in Federated Learning" (NeurIPS 2021).
    With one image every row gives that image, exactly. With several, a row gives a mixture of the images for which its
    neuron has a derivative; after a ReLU some neurons are active for one image alone, and their rows agree on it. The
    attack returns first what most rows agree on, then the rows that are farthest from being mixtures of those chosen
    (status `mixtures`: they may be images or not; `incomplete` if the rows hold fewer than the
    batch, as of equal images). The objective, what the images leave unexplained of the layer's
    gradient, is near zero for mixtures too. No iteration, no randomness, any activation, labels unneeded.
    """

    tolerance: Positive = 1e-4
    """Root mean square difference, in normalised pixels, up to which two rows count as agreeing. Raise it for updates
    with rounding or noise."""
    least: OpenFraction = 1e-6
    """Rows whose |bias gradient| is at most this share of the largest are not divided."""

    needs: ClassVar[frozenset[str]] = GRADIENT
    powers: ClassVar[frozenset[str]] = frozenset()

    def objection(self, situation: Situation) -> str | None:
        return several_steps(situation)

    def objection_to(self, model: nn.Module, situation: Situation) -> str | None:
        from fedsim.adversaries.inversion.closed_form.first_layer import misfit  # imports torch

        return misfit(model)

    def capture(self, seen: Observation) -> Iterable[Job]:
        return one_job(seen)

    def attack(self, job: Job, device: torch.device, rng: torch.Generator) -> Reconstruction:
        """Raises InputError for a model whose first layer is no Linear with bias on the bare image, and for a gradient
        that is zero or not finite there.
        """
        import torch

        from fedsim.adversaries.base import Reconstruction
        from fedsim.adversaries.inversion.closed_form import first_layer, rows
        from fedsim.adversaries.inversion.victim import rebuild

        victim = rebuild(job.observations[0], device)
        name = first_layer.find(victim)
        weight, bias = first_layer.gradients(victim, name)
        first_layer.check_gradient(weight, bias, name)
        count = victim.shape[0]
        if count == 1:
            found, agree = rows.one_input(weight, bias)[None], [len(rows.quotients(weight, bias, self.least)[1])]
        else:
            ends = victim.normalise.box(weight)
            low, high = (end.expand(1, *victim.shape[1:]).reshape(-1) for end in ends)
            found, agree = rows.candidates(weight, bias, count, low, high, self.tolerance, self.least)
        residual = rows.unexplained(weight, bias, found).norm() / torch.cat([weight, bias[:, None]], 1).norm()
        guess = first_layer.padded(found, count).view(victim.shape)
        images = victim.normalise.inverse(guess).clamp(0, 1)
        return Reconstruction(
            images=images.float().cpu().contiguous(),
            labels=None,
            objective=float(residual),
            iterations=0,
            status=_status(count, agree),
            notes=_notes(count, agree),
        )


def _notes(count: int, agree: list[int]) -> dict[str, Any]:
    notes: dict[str, Any] = {"rows that agree on each image": agree}
    unsure = len(agree) - _sure(count, agree)
    if unsure:
        notes["mixtures"] = (
            f"{unsure} of {count} images are single rows: mixtures of several images, unless a neuron was active for "
            "that image alone"
        )
    if len(agree) < count:
        notes["missing"] = f"{count - len(agree)} of {count} images are the mean image: the rows hold no more"
    return notes


def _status(count: int, agree: list[int]) -> str:
    if _sure(count, agree) < len(agree):
        return "mixtures"
    return "done" if len(agree) == count else "incomplete"


def _sure(count: int, agree: list[int]) -> int:
    """How many images are beyond doubt: several rows agree on them, or there is only one."""
    return len(agree) if count == 1 else sum(one > 1 for one in agree)
