"""The attack `label_inference`: which classes a batch holds, and how often, without any image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fedsim.adversaries.inversion.recipes.common import GRADIENT, one_job

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedsim.adversaries.base import Job, Observation, Reconstruction, Situation


@dataclass(frozen=True)
class LabelInference:
    """Reads the labels of the private batch off the gradient of the model's last layer. No image is sought.

    The model's last layer has to be fully connected, with a row a class. The result has no images; its objective is the
    share of the batch, in [0, 1], whose labels the bias gradient proves wrong (0 without a bias).

    method: how.
        idlg: the negative entry; exact, for one image alone (Zhao, Mopuri and Bilen, "iDLG", 2020).
        yin: the classes with the smallest entries, each once (Yin et al., "GradInversion", CVPR 2021).
        bias: counts from the bias gradient, taking the model's predictions as even. It needs a bias.
        llg: greedily, with an image's impact read off the gradient (Wainakh et al., "User-Level Label Leakage from
            Gradients in Federated Learning", PETS 2022).
        llg_model: likewise, with impact and offset from random images run through the model (LLG* of that paper).
        ilrg: the counts that solve a linear system of each class's mean prediction (Ma et al., "Instance-wise Batch
            Label Restoration via Gradients in Federated Learning", ICLR 2023). It needs a bias.
    """

    method: Literal["idlg", "yin", "bias", "llg", "llg_model", "ilrg"] = "ilrg"

    needs: ClassVar[frozenset[str]] = GRADIENT
    powers: ClassVar[frozenset[str]] = frozenset()

    def objection_to(self, model: nn.Module, situation: Situation) -> str | None:
        """Why the method does not fit the model's last layer or the batches."""
        from fedsim.adversaries.inversion import labels

        return labels.refusal(self.method, model, situation)

    def capture(self, seen: Observation) -> Iterable[Job]:
        """A job for each observation."""
        return one_job(seen)

    def attack(self, job: Job, device: torch.device, rng: torch.Generator) -> Reconstruction:
        """The labels, in ascending order. Raises InputError where the method and the model do not fit."""
        from fedsim import progress
        from fedsim.adversaries.base import Reconstruction
        from fedsim.adversaries.inversion import labels
        from fedsim.adversaries.inversion.victim import rebuild

        seen = job.observations[0]
        victim = rebuild(seen, device)
        found = labels.infer(self.method, seen, victim, rng)
        wrong = labels.contradiction(victim, found)
        progress.report(1, 1)
        notes: dict[str, object] = {"method": self.method}
        if wrong is None:
            notes["objective"] = "0: without a bias, nothing tells how far the labels fit the gradient"
        steps = int(seen.facts["num_steps"])
        if steps > 1:
            notes["gradient"] = f"the update of {steps} local steps is taken for the mean of as many gradients"
        return Reconstruction(images=None, labels=found, objective=wrong or 0.0, iterations=0, notes=notes)
