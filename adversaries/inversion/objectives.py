"""How far the guess's gradient is from the one that was seen: a scalar, and its derivative by the guess's gradient.

The derivative is in closed form because the step does not differentiate through the objective (see step.py). Every
objective takes `gradient` (the guess's), tensor by tensor in the order of the model's parameters, and what it is
compared with. It returns the scalar and the derivative by each tensor of `gradient`. All of them can be traced and
vmapped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Tensors = Sequence[Tensor]
Valued = tuple[Tensor, list[Tensor]]


@dataclass(frozen=True)
class Sought:
    """What the guess's gradient is compared with.

    target: the gradient seen. layers: a non-negative weight a tensor. masks: how much each entry counts, 1 wholly and 0
    not at all: for each tensor one of its shape or a scalar; None where all count.
    square: what `squared_length` says of these three; where it is None, the objectives that need it compute it.
    """

    target: Tensors
    layers: Sequence[float]
    masks: Tensors | None = None
    square: Tensor | None = None


Objective = Callable[[Tensors, Sought], Valued]
"""(gradient, what is sought) -> (objective, its derivative by each of the gradient's tensors)."""


def layer_weights(scheme: str, count: int) -> list[float]:
    """The weight of each of `count` parameter tensors, from the input's side on; the first one's is 1.

    equal: 1. linear: falls evenly to 1 / count. exponential: exp(-i). TAG (Deng et al., EMNLP 2021, equation 5) wants
    weights that fall with the distance from the input; the laws are those that breaching uses for it.
    """
    laws: dict[str, Callable[[int], float]] = {
        "equal": lambda i: 1.0,
        "linear": lambda i: (count - i) / count,
        "exponential": lambda i: math.exp(-i),
    }
    return [laws[scheme](i) for i in range(count)]


def cosine(gradient: Tensors, sought: Sought) -> Valued:
    """1 - <g, t> / (|g| |t|) over all parameters together (Geiping et al. 2020, equation 4); in [0, 2]."""
    similarity, length, own = _similarity(gradient, sought)
    return 1 - similarity, _turned(gradient, sought, similarity / own, -1 / length)


def angular(gradient: Tensors, sought: Sought) -> Valued:
    """arccos of that similarity, over pi: the angle between the gradients; in [0, 1]."""
    similarity, length, own = _similarity(gradient, sought)
    # The slope of arccos has no bound where the angle vanishes.
    inside = similarity.clamp(-1 + 1e-7, 1 - 1e-7)
    slope = -1 / (math.pi * (1 - inside * inside).sqrt())
    return torch.arccos(inside) / math.pi, _turned(gradient, sought, -slope * similarity / own, slope / length)


def squared_l2(gradient: Tensors, sought: Sought) -> Valued:
    """sum (g - t)^2 over all parameters (Zhu et al. 2019, equation 4)."""
    difference = _difference(gradient, sought)
    counted = _masked(difference, sought.masks)
    value = _inner(counted, difference, sought.layers)
    return value, [2 * w * d for d, w in zip(counted, sought.layers, strict=True)]


def l1(gradient: Tensors, sought: Sought) -> Valued:
    """sum |g - t| over all parameters."""
    counted = _masked(_difference(gradient, sought), sought.masks)
    value = _sum([d.abs().sum() for d in counted], sought.layers)
    slope = _masked([d.sign() for d in counted], sought.masks)
    return value, [w * d for d, w in zip(slope, sought.layers, strict=True)]


def tag(scale: float) -> Objective:
    """sum (g - t)^2 + scale sum |g - t|, the latter weighted by layer (TAG: Deng et al., EMNLP 2021, equation 5)."""

    def objective(gradient: Tensors, sought: Sought) -> Valued:
        squares, by_square = squared_l2(gradient, replace(sought, layers=[1.0] * len(sought.layers)))
        size, by_size = l1(gradient, sought)
        return squares + scale * size, [a + scale * b for a, b in zip(by_square, by_size, strict=True)]

    return objective


def named(name: str, tag_scale: float) -> Objective:
    """The objective of a name."""
    return {"cosine": cosine, "angular": angular, "squared_l2": squared_l2, "l1": l1, "tag": tag(tag_scale)}[name]


def squared_length(target: Tensors, layers: Sequence[float], masks: Tensors | None = None) -> Tensor:
    """sum over layers of w_l |t_l|^2, each entry as far as it counts; a scalar."""
    return _inner(_masked(target, masks), target, layers)


def _similarity(gradient: Tensors, sought: Sought) -> tuple[Tensor, Tensor, Tensor]:
    """(<g, t> / (|g| |t|), |g| |t|, |g|^2) with the inner product sum_l w_l <g_l, t_l>, each entry as far as it
    counts.
    """
    square = sought.square
    if square is None:
        square = squared_length(sought.target, sought.layers, sought.masks)
    counted = _masked(gradient, sought.masks)
    own = _inner(counted, gradient, sought.layers)
    length = (own * square).sqrt()
    return _inner(counted, sought.target, sought.layers) / length, length, own


def _turned(gradient: Tensors, sought: Sought, along_g: Tensor, along_t: Tensor) -> list[Tensor]:
    """along_g g + along_t t, weighted by layer, as far as entries count. `similarity` changes along -s/|g|^2 g + t/(|g|
    |t|).
    """
    terms = zip(gradient, sought.target, sought.layers, strict=True)
    return _masked([torch.addcmul(g * (w * along_g), t, w * along_t) for g, t, w in terms], sought.masks)


def _inner(one: Tensors, other: Tensors, layers: Sequence[float]) -> Tensor:
    """Multiplied, then summed, because torch sums pairwise. `torch.dot` and `vector_norm` add up one float32 after the
    other: over the 6 million entries of convnet6 that is wrong by up to 7e-4 on a CPU, more than the whole objective of
    a good guess, and bends its derivative.
    """
    return _sum([(a * b).sum() for a, b in zip(one, other, strict=True)], layers)


def _difference(gradient: Tensors, sought: Sought) -> list[Tensor]:
    return [g - t for g, t in zip(gradient, sought.target, strict=True)]


def _masked(values: Tensors, masks: Tensors | None) -> list[Tensor]:
    return list(values) if masks is None else [value * m for value, m in zip(values, masks, strict=True)]


def _sum(values: list[Tensor], layers: Sequence[float]) -> Tensor:
    return torch.stack([value if w == 1 else w * value for value, w in zip(values, layers, strict=True)]).sum()
