"""SPEAR: whole batches, exactly, through a fully connected layer and its ReLU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedsim.adversaries.inversion.recipes.common import GRADIENT, one_job, several_steps
from fedsim.settings import Count, Fraction, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fedsim.adversaries.base import Job, Observation, Reconstruction, Situation
    from fedsim.adversaries.inversion.closed_form.spear import Search
    from fedsim.adversaries.inversion.victim import Victim

_WORTH_LABELS = 0.9
"""Below this agreement the inputs are wrong, and labels read off them would be too."""
_MIXED = 0.05
"""Label weights farther than this from one-hot are taken for mixed labels."""


@dataclass(frozen=True)
class Spear:
    """Recovers a batch exactly from the gradient of a fully connected first layer that a ReLU follows.

    Dimitrov, Baader, Mueller, Vechev, "SPEAR: Exact Gradient Inversion of Batches in Federated Learning" (NeurIPS
    2024), sections 3 and 4: the weight gradient has the rank of the batch, and the ReLU makes the derivative by the
    layer's outputs sparse; sparse directions of its column space are found by drawing rows, and tell the images. The
    draws needed double with every image. Labels come with it, from the same derivative.

    In place of the paper's filter and exchange, directions are chosen greedily by their zeros, each refined on all rows
    where it is zero; the sparsity matching score decides when to stop.
    """

    samples: Count = 4_000_000
    """Sets of rows to draw at most; a batch of b images takes about b 2^(b-1) / 2 of them."""
    sparsity: Fraction = 0.1
    """The share of neurons for which a direction has to be zero to count. An image for which more than 1 - sparsity of
    the neurons are active cannot be found."""
    tolerance: Positive = 1e-3
    """What counts as zero, relative to a row's length. Noise that shows in the gradient raises it by itself."""
    agreement: Fraction = 0.98
    """The search ends once this share of neurons of every image is on and off as its derivative says."""

    needs: ClassVar[frozenset[str]] = GRADIENT
    powers: ClassVar[frozenset[str]] = frozenset()

    def objection(self, situation: Situation) -> str | None:
        return several_steps(situation)

    def objection_to(self, model: nn.Module, situation: Situation) -> str | None:
        from fedsim.adversaries.inversion.closed_form.first_layer import misfit  # imports torch

        return misfit(model, relu=True)

    def capture(self, seen: Observation) -> Iterable[Job]:
        return one_job(seen)

    def attack(self, job: Job, device: torch.device, rng: torch.Generator) -> Reconstruction:
        """Status `incomplete` where not every image could be told apart; what is returned is then a best guess.

        Raises InputError for a model that does not begin with Linear (with bias) and ReLU on the bare image, for a
        gradient that is zero or not finite there, and for a layer with no more active neurons than images.
        """
        from fedsim import progress
        from fedsim.adversaries.base import Reconstruction
        from fedsim.adversaries.inversion.closed_form import first_layer, spear
        from fedsim.adversaries.inversion.victim import rebuild
        from fedsim.errors import InputError

        victim = rebuild(job.observations[0], device)
        name = first_layer.find(victim, relu=True)
        weight, bias = first_layer.gradients(victim, name)
        first_layer.check_gradient(weight, bias, name)
        factors, seen_rank = spear.factorise(weight, victim.shape[0])
        if len(factors.rows) <= factors.rank and victim.shape[0] > 1:
            raise InputError(
                f"layer '{name}': {len(factors.rows)} neurons say something about {victim.shape[0]} images; "
                "spear needs many more neurons than images: use a wider first layer or a smaller batch_size"
            )
        found = spear.search(
            factors,
            bias,
            first_layer.parameters(victim, name),
            samples=self.samples,
            sparsity=self.sparsity,
            tolerance=self.tolerance,
            agree=self.agreement,
            rng=rng,
            report=lambda done, note: progress.report(done, self.samples, note),
        )
        progress.report(self.samples, self.samples)
        inputs = found.solution.inputs.view(-1, *victim.shape[1:]).nan_to_num(0, 0, 0)
        arrived = (factors.left * factors.length[:, None]) @ found.solution.columns
        labels, residual = _check(victim, name, inputs, factors.rows, arrived.T)
        whole = len(inputs) == victim.shape[0]
        worst = float(found.solution.agreement.min())
        guess = first_layer.padded(inputs, victim.shape[0])
        return Reconstruction(
            images=victim.normalise.inverse(guess).clamp(0, 1).float().cpu().contiguous(),
            labels=labels if whole and worst >= _WORTH_LABELS else None,
            objective=residual,
            iterations=found.samples,
            history=tuple((done, 1 - agreed) for done, agreed in found.history),
            status="done" if whole and worst >= self.agreement else "incomplete",
            notes=_notes(victim.shape[0], seen_rank, factors.rank, found, self.agreement),
        )


def _check(victim: Victim, name: str, inputs: Tensor, rows: Tensor, arrived: Tensor) -> tuple[Tensor, float]:
    """Labels, int64 (b,), and the relative residual of the whole gradient with them.

    inputs: normalised, float64 (b, C, H, W). arrived: (b, r), the derivative by the outputs `rows` of layer `name`.
    """
    import torch

    from fedsim.adversaries.inversion.closed_form import recheck

    # Without dropout, which would draw from the global random state.
    model = victim.model.eval()
    images = inputs.float()
    logits, derivatives = recheck.slopes(model, victim.parameters, model.get_submodule(name), images)
    weights = recheck.soft_labels(logits.double(), derivatives[:, :, rows].double(), arrived, victim.shape[0])
    hard = weights.argmax(1)
    # Labels that are clearly not one-hot are taken as they are: the clients mix them.
    mixed = float((weights - torch.nn.functional.one_hot(hard, victim.classes)).abs().max()) > _MIXED
    labels = weights.float() if mixed else hard
    return hard.cpu(), recheck.gradient_residual(model, victim.parameters, victim.gradient, images, labels)


def _notes(count: int, seen_rank: int | None, rank: int, found: Search, agree: float) -> dict[str, Any]:
    notes: dict[str, Any] = {
        "numerical rank": seen_rank,
        "directions found": found.found,
        "agreement of each image": [round(one, 4) for one in found.solution.agreement.tolist()],
    }
    if seen_rank is None:
        notes["rank"] = f"no gap in the singular values (noise or pruning); num_examples, {count}, is taken for it"
    elif seen_rank > count:
        notes["rank"] = f"{seen_rank} is more than num_examples, {count}, which is taken"
    elif seen_rank < count:
        notes["rank"] = (
            f"{seen_rank} is less than num_examples, {count}: images that are equal, or that no neuron answers to; "
            "the rest is filled with the mean image"
        )
    if found.found == rank and found.solution.agreement.min() < agree:
        notes["incomplete"] = (
            f"a direction was not found in {found.samples} draws, and another stands for it: the images do not fit the "
            "neurons that were on; raise samples, or lower sparsity"
        )
    if found.found < rank:
        notes["incomplete"] = (
            f"{rank - found.found} of {rank} directions were not found in {found.samples} draws, which spoils other "
            "images too; raise samples, or lower sparsity"
        )
    return notes
