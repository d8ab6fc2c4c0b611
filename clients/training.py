"""Local training: which images a client takes in a round, and what it makes of the broadcast model with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim import batchnorm, seeding
from fedsim.data.dataset import Normalisation
from fedsim.experiment import Algorithm, LocalTraining
from fedsim.models.loss import cross_entropy
from fedsim.protocol import Batch, Update


@dataclass(frozen=True)
class Trained:
    """The outcome of local training, before any defense.

    loss: the mean training loss over the round's images. passes: the batch statistics of each step, if recorded.
    """

    update: Update
    loss: float
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


def _passes(share: Tensor, size: int, rng: torch.Generator, epochs: int | None) -> Iterator[Tensor]:
    done = 0
    while len(share) and (epochs is None or done < epochs):
        yield from share[torch.randperm(len(share), generator=rng)].split(size)
        done += 1


def _walked(share: Tensor, training: LocalTraining, seed: int, round_: int, client: int) -> Tensor:
    """The batch of a round in passes over the whole share; the last one of a pass may be smaller."""
    passes, place = divmod(round_ - 1, math.ceil(len(share) / training.batch_size))
    if training.batches == "epochs":
        share = share[torch.randperm(len(share), generator=seeding.generator(seed, "pass", passes, client))]
    return share.split(training.batch_size)[place]


def train(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    batches: Sequence[Batch],
    training: LocalTraining,
    algorithm: Algorithm,
    policy: str,
    normalise: Normalisation,
    *,
    record: bool = False,
) -> Trained:
    """Train `model` from the broadcast `parameters` on `batches`, in that order.

    The model is a workbench: its parameters are overwritten, its running statistics are whatever the caller loaded.
    fedsgd: the update is the gradient of the mean loss. fedavg: SGD; the update is broadcast minus trained.
    """
    own = dict(model.named_parameters())
    weights: list[Tensor] = list(own.values())
    broadcast = [parameters[name] for name in own]
    with torch.no_grad():
        torch._foreach_copy_(weights, broadcast)
    batchnorm.training_mode(model, policy)
    wanted = record or policy == "share_batch"
    device = weights[0].device
    watch: AbstractContextManager[list[dict[str, Tensor]]] = batchnorm.recording(model) if wanted else nullcontext([])
    with watch as passes:
        if algorithm == "fedsgd":
            loss = _loss(model, batches[0], normalise, device)
            gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
            update = {name: gradient.cpu() for name, gradient in zip(own, gradients, strict=True)}
            total = float(loss.detach()) * len(batches[0])
        else:
            total = _sgd(model, weights, batches, training, normalise, device)
            with torch.no_grad():
                moved = torch._foreach_sub(broadcast, [value.cpu() for value in weights])
            update = dict(zip(own, moved, strict=True))
    count = sum(len(batch) for batch in batches)
    return Trained(Update(update), total / count, len(batches), passes)


def _sgd(
    model: nn.Module,
    weights: list[Tensor],
    batches: Sequence[Batch],
    training: LocalTraining,
    normalise: Normalisation,
    device: torch.device,
) -> float:
    """torch.optim.SGD's steps written out: making an optimiser for every client and round costs as much as a step."""
    velocity: list[Tensor] | None = None
    total = torch.zeros((), device=device)
    for batch in batches:
        loss = _loss(model, batch, normalise, device)
        gradients = list(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))
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
        total += loss.detach() * len(batch)
    return float(total)


def _loss(model: nn.Module, batch: Batch, normalise: Normalisation, device: torch.device) -> Tensor:
    images, labels = batch.images.to(device), batch.labels.to(device)
    return cross_entropy(model(normalise(images)), labels)
