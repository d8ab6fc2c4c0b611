"""How far the guess's gradient is from the one that was seen: a scalar, and its derivative by the guess's gradient.

The derivative is in closed form because the step does not differentiate through the objective (see step.py). Every
function takes `gradient` (the guess's) and `target` (the one seen), tensor by tensor in the order of the model's
parameters, and `weights`, one non-negative number a tensor or a tensor of the shape of each: 0 where an entry does not
count. It returns the scalar and the derivative by each tensor of `gradient`. All of them can be traced and vmapped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Tensors = Sequence[Tensor]
Valued = tuple[Tensor, list[Tensor]]
Objective = Callable[[Tensors, Tensors, Sequence[float], "Tensors | None", "Tensor | None"], Valued]
"""(gradient, target, a weight a tensor, masks, square) -> (objective, its derivative by each of the gradient's
tensors).

masks: 1 where an entry counts and 0 where it does not, one a tensor; None where all count.
square: what `squared_length` says of the target; where it is None, those that need it compute it.
"""


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


def cosine(
    gradient: Tensors,
    target: Tensors,
    weights: Sequence[float],
    masks: Tensors | None = None,
    square: Tensor | None = None,
) -> Valued:
    """1 - <g, t> / (|g| |t|) over all parameters together (Geiping et al. 2020, equation 4); in [0, 2]."""
    similarity, length, square = _similarity(gradient, target, weights, masks, square)
    return 1 - similarity, _turned(gradient, target, weights, masks, similarity / square, -1 / length)


def angular(
    gradient: Tensors,
    target: Tensors,
    weights: Sequence[float],
    masks: Tensors | None = None,
    square: Tensor | None = None,
) -> Valued:
    """arccos of that similarity, over pi: the angle between the gradients; in [0, 1]."""
    similarity, length, square = _similarity(gradient, target, weights, masks, square)
    # The slope of arccos has no bound where the angle vanishes.
    inside = similarity.clamp(-1 + 1e-7, 1 - 1e-7)
    slope = -1 / (math.pi * (1 - inside * inside).sqrt())
    direction = _turned(gradient, target, weights, masks, -slope * similarity / square, slope / length)
    return torch.arccos(inside) / math.pi, direction


def squared_l2(
    gradient: Tensors,
    target: Tensors,
    weights: Sequence[float],
    masks: Tensors | None = None,
    square: Tensor | None = None,
) -> Valued:
    """sum (g - t)^2 over all parameters (Zhu et al. 2019, equation 4)."""
    difference = _difference(gradient, target, masks)
    value = _sum([(d * d).sum() for d in difference], weights)
    return value, [2 * w * d for d, w in zip(difference, weights, strict=True)]


def l1(
    gradient: Tensors,
    target: Tensors,
    weights: Sequence[float],
    masks: Tensors | None = None,
    square: Tensor | None = None,
) -> Valued:
    """sum |g - t| over all parameters."""
    difference = _difference(gradient, target, masks)
    value = _sum([d.abs().sum() for d in difference], weights)
    return value, [w * d.sign() for d, w in zip(difference, weights, strict=True)]


def tag(scale: float) -> Objective:
    """sum (g - t)^2 + scale sum |g - t|, the latter weighted by layer (TAG: Deng et al., EMNLP 2021, equation 5)."""

    def objective(
        gradient: Tensors,
        target: Tensors,
        weights: Sequence[float],
        masks: Tensors | None = None,
        square: Tensor | None = None,
    ) -> Valued:
        squares, by_square = squared_l2(gradient, target, [1.0] * len(weights), masks)
        size, by_size = l1(gradient, target, weights, masks)
        return squares + scale * size, [a + scale * b for a, b in zip(by_square, by_size, strict=True)]

    return objective


def named(name: str, tag_scale: float) -> Objective:
    """The objective of a name."""
    return {"cosine": cosine, "angular": angular, "squared_l2": squared_l2, "l1": l1, "tag": tag(tag_scale)}[name]


def squared_length(target: Tensors, weights: Sequence[float], masks: Tensors | None = None) -> Tensor:
    """sum over layers of w_l |t_l|^2 over the entries that count, a scalar."""
    kept = target if masks is None else [t * m for t, m in zip(target, masks, strict=True)]
    return _inner(kept, kept, weights)


def _similarity(
    gradient: Tensors, target: Tensors, weights: Sequence[float], masks: Tensors | None, square: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(<g, t> / (|g| |t|), |g| |t|, |g|^2) with the inner product sum_l w_l <g_l, t_l> over the entries that count."""
    if square is None:
        square = squared_length(target, weights, masks)
    if masks is not None:
        gradient = [g * m for g, m in zip(gradient, masks, strict=True)]
    own = _inner(gradient, gradient, weights)
    length = (own * square).sqrt()
    return _inner(gradient, target, weights) / length, length, own


def _turned(
    gradient: Tensors,
    target: Tensors,
    weights: Sequence[float],
    masks: Tensors | None,
    along_g: Tensor,
    along_t: Tensor,
) -> list[Tensor]:
    """along_g g + along_t t, weighted by layer, where entries count. `similarity` changes along -s/|g|^2 g + t/(|g|
    |t|).
    """
    out = [torch.addcmul(g * (w * along_g), t, w * along_t) for g, t, w in zip(gradient, target, weights, strict=True)]
    return out if masks is None else [d * m for d, m in zip(out, masks, strict=True)]


def _inner(one: Tensors, other: Tensors, weights: Sequence[float]) -> Tensor:
    """Multiplied, then summed, because torch sums pairwise. `torch.dot` and `vector_norm` add up one float32 after the
    other: over the 6 million entries of convnet6 that is wrong by up to 7e-4 on a CPU, more than the whole objective of
    a good guess, and bends its derivative.
    """
    return _sum([(a * b).sum() for a, b in zip(one, other, strict=True)], weights)


def _difference(gradient: Tensors, target: Tensors, masks: Tensors | None) -> list[Tensor]:
    difference = [g - t for g, t in zip(gradient, target, strict=True)]
    return difference if masks is None else [d * m for d, m in zip(difference, masks, strict=True)]


def _sum(values: list[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([value if w == 1 else w * value for value, w in zip(values, weights, strict=True)]).sum()
