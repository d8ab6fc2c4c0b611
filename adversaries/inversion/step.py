"""One step of gradient inversion as a pure function of (knowledge, guess).

A step needs the derivative by the guess x of O(u(x)), where u(x) is the update that the client would have sent for x.
With v = dO/du in closed form, that is the vector-Jacobian product of u along v: a reverse pass for u(x), then one
through it. The objective itself is never recorded for differentiation, which saves several passes over all parameters,
and no gradient is written into a parameter.

The same derivative is that of a Jacobian-vector product of the loss along v, in forward mode, at about the same cost.
But torch 2.15 differentiates the forward mode of BatchNorm (by the batch's own statistics), InstanceNorm and
LayerNorm wrongly, without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.adversaries.inversion import priors
from fedsim.adversaries.inversion.calculus import RECORDED, Calculus
from fedsim.adversaries.inversion.local_steps import LocalSteps, one_gradient, unrolled
from fedsim.adversaries.inversion.maps import Map, through
from fedsim.adversaries.inversion.objectives import Objective, Sought
from fedsim.adversaries.inversion.statistics import Norms
from fedsim.models.loss import cross_entropy, training_loss

Guess = dict[str, Tensor]
"""`images`: (N, C, H, W), normalised; with labels that are sought too, `labels`: their logits (N, classes)."""

Knowledge = dict[str, Any]
"""What the attack has on one victim, all tensors, on one device:

parameters, buffers: by name, of the broadcast model. target: the update seen, a list in the order of the parameters;
square: its weighted squared length, which is the same in every step; without it, the objective computes it anew.
masks: how much entries count, likewise, or an empty list. maps: what each map of the plan is given, tensor by tensor;
absent where there are none. labels: int64 (N,) or soft (N, classes); of no use where the
guess has them. wanted: pairs of statistics, layer by layer, or an empty list. features: what went into the last layer,
(N, units), or an empty list.
"""


@dataclass(frozen=True)
class Weights:
    """How much each prior counts beside the objective; see priors.py. tv_p, tv_q, tv_absolute: of total variation."""

    tv: float = 0.0
    tv_p: float = 1.0
    tv_q: float = 1.0
    tv_absolute: bool = False
    l2: float = 0.0
    statistics: float = 0.0
    orthogonality: float = 0.0
    features: float = 0.0
    task: float = 0.0
    task_kind: str = "cross_entropy"
    order_invariance: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What a step does, the same for every victim.

    frame: the model under attack, into which parameters and buffers are put. norms: its BatchNorm layers.
    last: the fully connected layer whose input the prior on features is about.
    layers: the weight of each parameter tensor in the objective. local: None where the update is one gradient.
    maps: what becomes of the guess's update, one map after the other, before it is compared with the one seen.
    """

    frame: nn.Module
    norms: Norms
    objective: Objective
    layers: Sequence[float]
    weights: Weights = Weights()
    local: LocalSteps | None = None
    last: nn.Module | None = None
    maps: Sequence[Map] = ()


def step(plan: Plan, knowledge: Knowledge, guess: Guess, calculus: Calculus = RECORDED) -> tuple[Tensor, Guess]:
    """(objective with priors, a scalar; its derivative by everything in the guess). Pure, and can be traced; with the
    calculus TRANSFORMED it can be vmapped.
    """
    (update, prior), pull = calculus.pullback(lambda one: _shown(plan, knowledge, one, calculus), guess)
    sought = Sought(knowledge["target"], plan.layers, knowledge["masks"] or None, knowledge.get("square"))
    with torch.no_grad():
        value, direction = through(plan.maps, knowledge.get("maps", []), plan.objective)(update, sought)
    return value + prior, pull(direction, torch.ones_like(prior))


def _shown(plan: Plan, knowledge: Knowledge, guess: Guess, calculus: Calculus) -> tuple[list[Tensor], Tensor]:
    """(the update that the client would have sent, the priors' weighted sum)."""
    images = guess["images"]
    labels = guess["labels"].softmax(1) if "labels" in guess else knowledge["labels"]
    weights = plan.weights
    watch_features = weights.features > 0 and plan.last is not None and knowledge["features"] != []

    def loss(parameters: dict[str, Tensor], own: Tensor, of: Tensor) -> tuple[Tensor, list[Tensor]]:
        seen: list[Tensor] = []
        handle = None
        if watch_features:
            assert plan.last is not None
            handle = plan.last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        logits = functional_call(plan.frame, {**parameters, **knowledge["buffers"]}, (own,))
        if handle is not None:
            handle.remove()
        extra = [value for pair in plan.norms.take() for value in pair]
        if weights.task:
            extra.append(_task(logits, of, weights.task_kind))
        return training_loss(plan.frame, logits, of), [*extra, *seen]

    if plan.local is None:
        update, extra = one_gradient(loss, knowledge["parameters"], images, labels, calculus)
    else:
        update, extra = unrolled(loss, knowledge["parameters"], images, labels, plan.local, calculus)
    return update, _priors(plan, knowledge, images, extra)


def _priors(plan: Plan, knowledge: Knowledge, images: Tensor, extra: list[Tensor]) -> Tensor:
    """extra: mean and variance of each BatchNorm layer, then the task's loss, then the last layer's input."""
    weights = plan.weights
    total = torch.zeros((), dtype=images.dtype, device=images.device)
    if weights.tv:
        total = total + weights.tv * priors.total_variation(images, weights.tv_p, weights.tv_q, weights.tv_absolute)
    if weights.l2:
        total = total + weights.l2 * priors.squared_norm(images)
    if weights.orthogonality:
        total = total + weights.orthogonality * priors.orthogonality(images)
    count = 2 * len(plan.norms.wanted)
    if weights.statistics and count:
        pairs = list(zip(extra[0:count:2], extra[1:count:2], strict=True))
        total = total + weights.statistics * priors.statistics_distance(zip(pairs, knowledge["wanted"], strict=True))
    if weights.task:
        total = total + weights.task * extra[count]
        count += 1
    if len(extra) > count:
        total = total + weights.features * priors.feature_distance(extra[count], knowledge["features"])
    if weights.order_invariance and plan.local is not None and plan.local.separate:
        total = total + weights.order_invariance * priors.epoch_order_invariance(images, plan.local.epochs)
    return total


def _task(logits: Tensor, labels: Tensor, kind: str) -> Tensor:
    """The prior that the guess be classified as its label (Wei et al., ESORICS 2020, equation 5).

    squared: mean over images of |softmax(logits) - label|^2, as the paper has it; or their cross-entropy.
    """
    if kind == "cross_entropy":
        return cross_entropy(logits, labels)
    if labels.dim() == 1:
        # Not by `one_hot`, which looks at the values, and so cannot be traced.
        labels = (labels[:, None] == torch.arange(logits.shape[1], device=labels.device)).to(logits.dtype)
    return (logits.softmax(1) - labels).square().sum(1).mean()
