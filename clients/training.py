"""Local training: which images a client takes in a round, and what it makes of the broadcast model with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim import batchnorm, seeding
from fedsim.data.dataset import Normalisation
from fedsim.experiment import Algorithm, LocalTraining
from fedsim.models.loss import cross_entropy, training_loss
from fedsim.protocol import Batch, Update

Gradient = Callable[[int, Batch, Callable[[Batch], Tensor]], list[Tensor]]
"""How a defense makes the gradient of a step (counted from 0) on a batch, given the mean loss of the model on any."""


class Body:
    """A model with what every step needs of it, looked up once. Its modules and parameters stay the same objects."""

    def __init__(self, model: nn.Module) -> None:
        own = dict(model.named_parameters())
        self.model, self.modules = model, tuple(model.modules())
        self.names = tuple(own)
        self.weights: list[Tensor] = list(own.values())
        self.regularised = any(hasattr(type(module), "take_penalty") for module in self.modules)
        """Whether its layers may add to the loss."""


@dataclass(frozen=True)
class Trained:
    """The outcome of local training, before any defense of the update.

    loss: the mean training loss over the round's images; None where a defense makes the gradients, as it is not
    protected. passes: the batch statistics of each step, if recorded.
    """

    update: Update
    loss: float | None
    steps: int
    passes: Sequence[Mapping[str, Tensor]]


def schedule(
    share: Tensor, training: LocalTraining, algorithm: Algorithm, seed: int, round_: int, client: int
) -> list[Tensor]:
    """The indices of each local step's batch, a pure function of its arguments.

    fedsgd: one batch, drawn without replacement; or, as `batches` says, the next one of a pass that goes on from round
    to round. fedavg: `local_epochs` shuffled passes, the last batch of a pass may be smaller; or `local_steps` steps of
    such passes.
    """
    if algorithm == "fedsgd" and training.batches != "random" and len(share):
        return [_walked(share, training, seed, round_, client)]
    rng = seeding.generator(seed, "batches", round_, client)
    steps = 1 if algorithm == "fedsgd" else training.local_steps
    out: list[Tensor] = []
    for batch in _passes(share, training.batch_size, rng, None if steps else training.local_epochs):
        out.append(batch)
        if len(out) == steps:
            break
    return out


def poisson_schedule(share: Tensor, rate: float, steps: int, seed: int, round_: int, client: int) -> list[Tensor]:
    """The same by Poisson sampling: each index is in each step's batch with probability `rate`, independent of all
    others. A batch may be empty. A fixed size would be another mechanism than the one that is accounted for.
    """
    rng = seeding.generator(seed, "batches", round_, client)
    return [share[torch.rand(len(share), generator=rng, dtype=torch.float64) < rate] for _ in range(steps)]


def steps_of(size: int, training: LocalTraining, algorithm: Algorithm) -> int:
    """Local steps in a round of Poisson-sampled batches by a client with `size` images: an epoch has round(1 / q)."""
    if algorithm == "fedsgd":
        return 1
    return training.local_steps or training.local_epochs * round(size / min(training.batch_size, size))


def _passes(share: Tensor, size: int, rng: torch.Generator, epochs: int | None) -> Iterator[Tensor]:
    done = 0
    while len(share) and (epochs is None or done < epochs):
        yield from share.index_select(0, torch.randperm(len(share), generator=rng)).split(size)
        done += 1


def _walked(share: Tensor, training: LocalTraining, seed: int, round_: int, client: int) -> Tensor:
    """The batch of a round in passes over the whole share; the last one of a pass may be smaller."""
    passes, place = divmod(round_ - 1, math.ceil(len(share) / training.batch_size))
    if training.batches == "epochs":
        share = share[torch.randperm(len(share), generator=seeding.generator(seed, "pass", passes, client))]
    return share.split(training.batch_size)[place]


def train(
    model: nn.Module | Body,
    parameters: Mapping[str, Tensor],
    batches: Iterable[Batch],
    training: LocalTraining,
    algorithm: Algorithm,
    policy: str,
    normalise: Normalisation | None,
    *,
    gradient: Gradient | None = None,
    record: bool = False,
) -> Trained:
    """Train `model` from the broadcast `parameters` on `batches`, in that order.

    The model is a workbench: its parameters are overwritten, its running statistics are whatever the caller loaded.
    fedsgd: the update is the gradient of the mean loss. fedavg: SGD; the update is broadcast minus trained.
    batches: may be made as they are asked for. normalise: None for batches that are normalised. gradient: makes each
    step's gradient instead.
    """
    body = model if isinstance(model, Body) else Body(model)
    own, weights, model = body.names, body.weights, body.model
    broadcast = [parameters[name] for name in own]
    with torch.no_grad():
        torch._foreach_copy_(weights, broadcast)
    batchnorm.training_mode(model, policy, body.modules)
    wanted = record or policy == "share_batch"
    device = weights[0].device

    def step(number: int, batch: Batch) -> tuple[list[Tensor], Tensor]:
        if gradient is not None:
            made = gradient(number, batch, lambda images: _loss(body, images, normalise, device))
            return made, torch.zeros((), device=device)
        loss = _loss(body, batch, normalise, device)
        return list(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)), loss.detach()

    watch: AbstractContextManager[list[dict[str, Tensor]]] = batchnorm.recording(model) if wanted else nullcontext([])
    with watch as passes:
        if algorithm == "fedsgd":
            batch = next(iter(batches))
            gradients, loss = step(0, batch)
            update = {name: value.cpu() for name, value in zip(own, gradients, strict=True)}
            total, seen, steps = float(loss) * len(batch), len(batch), 1
        else:
            total, seen, steps = _sgd(step, weights, batches, training)
            with torch.no_grad():
                moved = torch._foreach_sub(broadcast, [value.cpu() for value in weights])
            update = dict(zip(own, moved, strict=True))
    return Trained(Update(update), None if gradient is not None else total / seen, steps, passes)


def _sgd(
    step: Callable[[int, Batch], tuple[list[Tensor], Tensor]],
    weights: list[Tensor],
    batches: Iterable[Batch],
    training: LocalTraining,
) -> tuple[float, int, int]:
    """torch.optim.SGD's steps written out: making an optimiser for every client and round costs as much as a step.

    Returns the sum of all images' losses, how many images, and how many steps.
    """
    velocity: list[Tensor] | None = None
    total, seen, number = torch.zeros((), device=weights[0].device), 0, 0
    for batch in batches:
        gradients, loss = step(number, batch)
        number, seen = number + 1, seen + len(batch)
        with torch.no_grad():
            if training.weight_decay:
                torch._foreach_add_(gradients, weights, alpha=training.weight_decay)
            if training.momentum:
                if velocity is None:
                    velocity = gradients
                else:
                    torch._foreach_mul_(velocity, training.momentum)
                    torch._foreach_add_(velocity, gradients)
                gradients = velocity
            torch._foreach_add_(weights, gradients, alpha=-training.learning_rate)
        total += loss * len(batch)
    return float(total), seen, number


def _loss(body: Body, batch: Batch, normalise: Normalisation | None, device: torch.device) -> Tensor:
    images, labels = batch.images.to(device), batch.labels.to(device)
    logits = body.model(images if normalise is None else normalise(images))
    return training_loss(body.model, logits, labels) if body.regularised else cross_entropy(logits, labels)
