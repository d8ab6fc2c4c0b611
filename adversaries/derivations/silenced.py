"""What is left of a sum for its one client with the true model, when all others were sent a silent one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from fedsim import batchnorm
from fedsim.adversaries.base import Observation
from fedsim.adversaries.derivations.sums import equal_counts, own_labels, quantised, single, total
from fedsim.adversaries.inversion import last_layer
from fedsim.adversaries.inversion.victim import rebuild
from fedsim.models.layers import last_linear
from fedsim.models.loss import training_loss

CPU = torch.device("cpu")
NOTHING = 1e-12
"""Gradients below this are taken for 0: those of dead sigmoids are denormal numbers."""

LENGTHS = 20000
"""Lengths of the last bias' gradient that are tried, in each direction."""

FITS = 0.07
"""Root of the mean squared distance from whole numbers (0.29 by chance) that is taken for an agreement."""

ALIKE = 0.5
"""Cosine of two mean inputs of the last layer above which the length of one is taken for that of the other."""

DUMMY_BATCHES = 10
"""Batches of random images from which the mean input of the last layer is estimated."""


@dataclass(frozen=True)
class Outcome:
    """observation: of the target alone. notes: on what is not exact in it, for a person."""

    observation: Observation
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """What a client with the silent model sends, found on random images of random labels.

    constant: the gradients that do not depend on the batch; nearly always 0. varied: the names of the others.
    statistics: the BatchNorm statistics that go with the update, by the policy.
    """

    constant: Mapping[str, Tensor]
    varied: frozenset[str]
    statistics: Mapping[str, Tensor]


def remaining(seen: Observation, target: int, silent: Mapping[str, Tensor]) -> Outcome:
    """The target's update. seen: the sum of the round. silent: what all others were sent."""
    everyone, each = int(seen.facts["num_examples"]), equal_counts(seen)
    weight = everyone / len(seen.facts["clients"]) if each is None else each
    others = everyone - weight
    tried, how = _try(seen, silent), quantised(seen)
    sums = {
        part: {name: value / (how.exact(part) or 1) for name, value in total(seen, part, how).items()}
        for part in ("update", "sent_buffers")
    }
    tensors, notes = {}, []
    for name, value in sums["update"].items():
        tensors[f"update/{name}"] = (value - others * tried.constant.get(name, torch.zeros(()))) / weight
    for name, value in sums["sent_buffers"].items():
        tensors[f"sent_buffers/{name}"] = (value - others * tried.statistics[name]) / weight
    tensors = {path: value.float() for path, value in tensors.items()}
    if each is None:
        notes.append(
            f"its number of examples is not known and taken for {weight:g}, the mean; the update's length is wrong by "
            "the same factor"
        )
    else:
        labels = own_labels(seen, target, dict.fromkeys(seen.facts["clients"], each))
        if labels is not None:
            tensors["known/labels"] = labels
    derived: dict[str, Any] = {"by": "suppression", "rounds": [seen.round], "polluted": sorted(tried.varied)}
    count = max(1, round(weight))
    one = single(seen, target, tensors, derived, num_examples=count)
    last = last_linear(rebuild(one, CPU).model, int(seen.facts["classes"]))
    bias = f"{last}.bias"
    if tried.varied == {bias}:
        exact = each is not None and seen.facts["algorithm"] == "fedsgd"
        found, words = _bias(one, str(last), sums["update"][bias], count, round(others) if exact else None)
        one = replace(one, tensors={**one.tensors, f"update/{bias}": found})
        notes.append(f"the others' labels are in the sum's '{bias}'; the target's own {words}")
    elif tried.varied:
        notes.append(
            f"what the others sent is still in {', '.join(sorted(tried.varied))}: the silent model does not silence "
            "this network; try the other value of silence"
        )
    return Outcome(one, tuple(notes))


def _try(seen: Observation, silent: Mapping[str, Tensor]) -> Trial:
    """Two batches with nothing in common through the silent model, in the mode in which clients train."""
    victim = rebuild(seen, CPU)
    policy, model = victim.facts["batchnorm"], victim.model
    rng = torch.Generator().manual_seed(0)
    gradients: list[Sequence[Tensor]] = []
    with batchnorm.recording(model) as passes:
        for _ in range(2):
            batchnorm.load_statistics(model, seen.part("buffers"))
            images = victim.normalise(torch.rand((2, *victim.shape[1:]), generator=rng))
            labels = torch.randint(victim.classes, (2,), generator=rng)
            weights = {name: value.clone().requires_grad_() for name, value in silent.items()}
            for _ in range(int(seen.facts.get("num_steps", 1))):  # as often as running statistics move
                loss = training_loss(model, functional_call(model, weights, (images,)), labels)
            gradients.append(
                torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
            )
    constant, varied = {}, set()
    for name, one, other in zip(silent, *gradients, strict=True):
        # Of several local steps, only what is 0 is known.
        same = float((one - other).abs().max()) < NOTHING
        if not same or (victim.facts["algorithm"] != "fedsgd" and float(one.abs().max()) > NOTHING):
            varied.add(name)
        elif float(one.abs().max()) > NOTHING:
            constant[name] = one.double()
    statistics = {name: value.double() for name, value in batchnorm.sent(policy, model, passes).items()}
    return Trial(constant, frozenset(varied), statistics)


def _bias(one: Observation, last: str, summed: Tensor, count: int, others: int | None) -> tuple[Tensor, str]:
    """The target's gradient of the last layer's bias, float32 (classes,), and what became of it, in words.

    The weights' gradient is the mean over the batch of (prediction - label) times input, and that of the bias of
    (prediction - label): with inputs much alike, the latter is the former's first left singular vector, times a length.
    For the length, in fedsgd, there is the whole sum,
        count * (target's) + others / classes - (how often each label is among the others),
    so that count * (target's) is known up to whole numbers, one a class: a length with which the estimate agrees with
    them all is hardly there by chance. Without one, the length is that with random images as input, where the singular
    vector is near what they give; otherwise 0 is nearer the target's than the sum is. (Cosine of the whole gradient
    with the true one, five clients, images of mnist5k. mlp, 1 image: sum .982, zeros .996, worked out 1.000; 8 images:
    sum .988, zeros .997, estimated .9996; mlp with tanh, 8 images: sum .991, zeros .998, estimated .70.)
    others: how many examples the other clients have, in fedsgd.
    """
    victim = rebuild(one, CPU)
    rng = torch.Generator().manual_seed(0)
    inputs, _ = last_layer.dummy_pass(victim, last, DUMMY_BATCHES, rng, one.part("buffers"))
    gradient = victim.target[f"{last}.weight"].double()
    left, values, right = torch.linalg.svd(gradient, full_matrices=False)
    direction, mean = left[:, 0], inputs.mean(0)
    if others is not None:
        rest = summed - others / victim.classes
        lengths = torch.linspace(-1, 1, 2 * LENGTHS + 1, dtype=torch.float64) * 2**0.5  # of prediction - label, at most
        tried = count * lengths[:, None] * direction - rest
        misfit = (tried - tried.round()).square().mean(1).sqrt()
        best = int(misfit.argmin())
        if float(misfit[best]) < FITS:
            exact = (rest + tried[best].round()) / count
            return exact.float(), f"was worked out with the help of the gradient of '{last}.weight'"
    along = float(right[0] @ mean)
    if abs(along) > ALIKE * float(mean.norm()):
        estimate = direction * values[0] / along
        return estimate.float(), f"was estimated by the gradient of '{last}.weight'"
    return torch.zeros_like(direction).float(), "could not be told and is set to 0"
