"""What the client is taken to have done with the guess: one gradient, or the local steps of FedAvg, unrolled.

Both are pure functions that can be differentiated by the images; "the client's update" is what they return.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.adversaries.inversion.calculus import RECORDED, Calculus

Weights = dict[str, Tensor]
Loss = Callable[[Weights, Tensor, Tensor], tuple[Tensor, list[Tensor]]]
"""(weights, images, labels) -> (mean loss, what else of the forward pass is wanted)."""


@dataclass(frozen=True)
class LocalSteps:
    """The client's local training, as its protocol says: what the server asks of every client.

    batches: the size of each step's batch within one epoch. epochs: how often they are gone over, as far as `steps`
    reaches. steps: in all. rate, momentum, weight_decay: of the local SGD.
    separate: whether the guess holds images of its own for every epoch (Dimitrov et al. 2022), or one set for all.
    """

    batches: tuple[int, ...]
    steps: int
    rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    separate: bool = False

    @property
    def epochs(self) -> int:
        """How many epochs were begun."""
        return -(-self.steps // len(self.batches))

    @property
    def passed(self) -> int:
        """How many images go through the model in all steps together."""
        whole, begun = divmod(self.steps, len(self.batches))
        return whole * sum(self.batches) + sum(self.batches[:begun])

    def portions(self, images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Images and labels of each step, in their order. The order within an epoch is taken to be that of the
        guess.
        """
        out: list[tuple[Tensor, Tensor]] = []
        size = sum(self.batches)
        for epoch in range(self.epochs):
            own = images[epoch * size : (epoch + 1) * size] if self.separate else images
            out += zip(own.split(self.batches), labels.split(self.batches), strict=True)
        return out[: self.steps]


def one_gradient(
    loss: Loss, weights: Weights, images: Tensor, labels: Tensor, calculus: Calculus = RECORDED
) -> tuple[list[Tensor], list[Tensor]]:
    """(the gradient of the loss by each weight, what else was wanted)."""
    gradient, extra = calculus.gradient(lambda w: loss(w, images, labels), weights)
    return list(gradient.values()), extra


def unrolled(
    loss: Loss, weights: Weights, images: Tensor, labels: Tensor, local: LocalSteps, calculus: Calculus = RECORDED
) -> tuple[list[Tensor], list[Tensor]]:
    """(mean step, what else was wanted, as its mean over the steps).

    The mean step is the broadcast minus the trained weights, over rate and number of steps: in the units of one
    gradient.

    Geiping et al. 2020, section 6: the attack differentiates through the client's whole local training.
    """
    before = weights
    velocity: dict[str, Tensor] | None = None
    extras: list[list[Tensor]] = []
    update = [torch.zeros_like(value) for value in before.values()]
    for own, of in local.portions(images, labels):
        gradient, extra = calculus.gradient(lambda w, own=own, of=of: loss(w, own, of), weights)  # type: ignore[misc]
        extras.append(extra)
        if local.weight_decay:
            gradient = {name: g + local.weight_decay * weights[name] for name, g in gradient.items()}
        if local.momentum and velocity is not None:
            gradient = {name: local.momentum * velocity[name] + g for name, g in gradient.items()}
        velocity = gradient
        # Summed up as it goes: the difference of two near weights would lose digits.
        update = [u + local.rate * g for u, g in zip(update, gradient.values(), strict=True)]
        weights = {name: w - u for (name, w), u in zip(before.items(), update, strict=True)}
    scale = 1 / (local.rate * local.steps)
    return [u * scale for u in update], _mean(extras)


def _mean(extras: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.stack(values).mean(0) for values in zip(*extras, strict=True)]
