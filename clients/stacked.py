"""Local training of several clients as one computation: every step is `torch.func.vmap` over their stacked parameters.

The mathematics are those of `training.train`; only the order in which numbers are added differs. Clients that have
fewer images in a step are filled up with blank ones of weight 0, and one that has made all its steps leaves the stack.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from fedsim.clients.training import Body, Trained
from fedsim.experiment import Algorithm, LocalTraining
from fedsim.protocol import Batch, Update

CPU_BYTES = 2**30
GPU_BYTES = 4 * 2**30
"""What `at_once` lets the clients of one computation take, as it reckons. Constants: with other clients in a stack the
same ones would be rounded otherwise, so that the free memory of the moment must not decide."""


@dataclass(frozen=True)
class Trainee:
    """A client's part: its batches, normalised, in the order of its steps; `sizes` are their lengths."""

    batches: Iterator[Batch]
    sizes: Sequence[int]


def gradients(
    body: Body, parameters: Mapping[str, Tensor], batch: Batch, weights: Tensor, *, shared: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Each client's gradient of its loss, by name, (k, *shape), and the losses (k,).

    parameters: (k, *shape); shared: one set (*shape) for all. batch: (k, n, ...). weights: of the images, (k, n).
    Raises what the model raises under `vmap`: RuntimeError for layers that draw random numbers, among others.
    """

    def loss(own: dict[str, Tensor], images: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        logits = functional_call(body.model, own, (images,))
        return (F.cross_entropy(logits, labels, reduction="none") * weights).sum()

    each = vmap(grad_and_value(loss), in_dims=(None if shared else 0, 0, 0, 0), randomness="error")
    found, losses = each(dict(parameters), batch.images, batch.labels, weights)
    # Of a parameter that plays no part there is one gradient of zeros for all, which cannot be written to.
    return {name: value.detach().contiguous() for name, value in found.items()}, losses.detach()


def stacked(batches: Sequence[Batch], device: torch.device) -> tuple[Batch, Tensor]:
    """Batches of several clients as one, (k, n, ...) with n the largest, and weights (k, n): 1 / size; 0 of a blank."""
    first, most = batches[0], max(map(len, batches))
    images = first.images.new_zeros(len(batches), most, *first.images.shape[1:])
    labels = first.labels.new_zeros(len(batches), most, *first.labels.shape[1:])
    weights = torch.zeros(len(batches), most)
    for place, batch in enumerate(batches):
        images[place, : len(batch)] = batch.images
        labels[place, : len(batch)] = batch.labels
        weights[place, : len(batch)] = 1 / len(batch)
    return Batch(images.to(device), labels.to(device)), weights.to(device)


def train(
    body: Body,
    parameters: Mapping[str, Tensor],
    trainees: Sequence[Trainee],
    training: LocalTraining,
    algorithm: Algorithm,
) -> list[Trained]:
    """What `training.train` makes of each client, from the same broadcast parameters and with the same settings.

    The model must be in its training mode, and its own parameters are left as they are.
    """
    device = body.weights[0].device
    start = {name: parameters[name].to(device) for name in body.names}
    # Those with the most steps first, so that the ones who go on are always the head of the stack.
    order = sorted(range(len(trainees)), key=lambda one: -len(trainees[one].sizes))
    queue = [trainees[one] for one in order]
    totals = torch.zeros(len(queue), device=device)
    own: dict[str, Tensor] = start
    velocity: dict[str, Tensor] = {}
    for step in range(1 if algorithm == "fedsgd" else len(queue[0].sizes)):
        active = [one for one in queue if len(one.sizes) > step]
        batch, weights = stacked([next(one.batches) for one in active], device)
        count, first = len(active), step == 0
        # In the first step all have the same parameters, which makes one large convolution out of many small ones.
        head = own if first else {name: value[:count] for name, value in own.items()}
        found, losses = gradients(body, head, batch, weights, shared=first)
        totals[:count] += losses * torch.tensor([one.sizes[step] for one in active], device=device)
        if algorithm == "fedsgd":
            return _trained(found, None, queue, order, totals, 1)
        with torch.no_grad():
            if first:
                head = own = {name: torch.stack([value] * count) for name, value in start.items()}
            _descend(head, found, {name: value[:count] for name, value in velocity.items()}, training)
            if training.momentum and first:
                velocity = found
    return _trained(own, parameters, queue, order, totals, None)


def _descend(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor], velocity: Mapping[str, Tensor], training: LocalTraining
) -> None:
    """A step of SGD, in place, as torch.optim.SGD takes it. velocity: {} before the first; then `found` becomes it."""
    weights, slopes = list(own.values()), [found[name] for name in own]
    if training.weight_decay:
        torch._foreach_add_(slopes, weights, alpha=training.weight_decay)
    if training.momentum and velocity:
        held = [velocity[name] for name in own]
        torch._foreach_mul_(held, training.momentum)
        torch._foreach_add_(held, slopes)
        slopes = held
    torch._foreach_add_(weights, slopes, alpha=-training.learning_rate)


def _trained(
    made: Mapping[str, Tensor],
    broadcast: Mapping[str, Tensor] | None,
    queue: Sequence[Trainee],
    order: Sequence[int],
    totals: Tensor,
    steps: int | None,
) -> list[Trained]:
    """The outcome of each client, in the order in which they were given. broadcast: what weights are taken from."""
    made = {name: value.cpu() for name, value in made.items()}
    sums = totals.tolist()
    out: dict[int, Trained] = {}
    for place, (one, trainee) in enumerate(zip(order, queue, strict=True)):
        # In memory of its own: a view would hold everybody's.
        update = {
            name: value[place].clone() if broadcast is None else broadcast[name] - value[place]
            for name, value in made.items()
        }
        sizes = trainee.sizes[:steps]
        out[one] = Trained(Update(update), sums[place] / sum(sizes), len(sizes), [])
    return [out[one] for one in range(len(order))]


def at_once(body: Body, batch: Batch, held: int = 1) -> int:
    """How many clients a computation may hold: as many as fit in `CPU_BYTES` or `GPU_BYTES`, and at least one.

    Reckoned a client: its parameters six times (weights, gradients, velocity, update and two on the way), three times
    what its largest `batch` saves for the backward pass, and the images of `held` such batches twice.
    """
    saved = 0

    def count(value: Tensor) -> Tensor:
        nonlocal saved
        saved += value.numel() * value.element_size()
        return value

    device = body.weights[0].device
    images = batch.images.to(device)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
        body.model(images)
    parameters = sum(value.numel() * value.element_size() for value in body.weights)
    own = 6 * parameters + 3 * saved + 2 * images.numel() * images.element_size() * held
    return max(1, (CPU_BYTES if device.type == "cpu" else GPU_BYTES) // own)


def objection(body: Body, parameters: Mapping[str, Tensor], batch: Batch) -> str | None:
    """Why the model cannot be trained so, found out by trying a step; None if it can.

    Two clients of different parameters and sizes are computed together and each by itself, and must agree.
    """
    device = body.weights[0].device
    batches = [batch, Batch(batch.images[:-1], batch.labels[:-1]) if len(batch) > 1 else batch]
    start = {name: parameters[name].to(device) for name in body.names}
    two = {name: torch.stack([value, value * 1.01]) for name, value in start.items()}
    try:
        together, _ = gradients(body, two, *stacked(batches, device), shared=False)
        for place, one in enumerate(batches):
            own = {name: value[place].requires_grad_() for name, value in two.items()}
            logits = functional_call(body.model, own, (one.images.to(device),))
            loss = F.cross_entropy(logits, one.labels.to(device))
            alone = torch.autograd.grad(loss, list(own.values()), allow_unused=True, materialize_grads=True)
            apart = _norm(together[name][place] - value for name, value in zip(own, alone, strict=True))
            if not apart <= 1e-3 * _norm(alone):
                return "its gradients are others when several clients are computed together"
    except Exception as error:  # whatever layers say of being transformed
        return f"it cannot be computed for several clients together: {_first_line(error)}"
    return None


def _norm(values: Iterable[Tensor]) -> float:
    return float(torch.stack(torch._foreach_norm(list(values))).norm())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
