"""What an attacker who knows a client's defense does to its guess's own gradient before comparing the two.

A map is the defense itself where it is a differentiable function (clipping), or as much of it as is: a smooth sign, a
comparison that ends at the edge of a rounding cell. The step does not differentiate through what follows the gradient
(see step.py), so every map comes with its pullback, the transposed Jacobian times a direction, in closed form. All of
them can be traced and vmapped: no branch depends on a value, and what differs between victims is a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fedsim.adversaries.inversion.objectives import Objective, Sought, Tensors, Valued

Pullback = Callable[[Tensors], list[Tensor]]

SMOOTHNESS = 0.1
"""How soon the smooth sign saturates, in units of the mean size of a tensor's entries."""

TINY = 1e-12
"""Keeps a quotient finite where a whole tensor is zero."""


class Map(Protocol):
    """A differentiable map of a gradient."""

    def __call__(self, gradient: Tensors, given: Tensors, target: Tensors) -> tuple[list[Tensor], Pullback]:
        """(what becomes of the gradient, the pullback at this place).

        given: what the map is told about this victim. target: the gradient that was seen.
        """
        ...


def through(maps: Sequence[Map], given: Sequence[Tensors], objective: Objective) -> Objective:
    """The objective of what the maps, one after the other, make of the gradient; its slope is by the gradient itself.

    given: for each map what it is told.
    """
    if not maps:
        return objective

    def mapped(gradient: Tensors, sought: Sought) -> Valued:
        backs: list[Pullback] = []
        for one, told in zip(maps, given, strict=True):
            gradient, back = one(gradient, told, sought.target)
            backs.append(back)
        value, direction = objective(gradient, sought)
        for back in reversed(backs):
            direction = back(direction)
        return value, direction

    return mapped


def scaled(gradient: Tensors, given: Tensors, target: Tensors) -> tuple[list[Tensor], Pullback]:
    """m g, with m for each tensor of its shape or a scalar: what was not sent is 0."""

    def times(values: Tensors) -> list[Tensor]:
        return [m * value for m, value in zip(given, values, strict=True)]

    return times(gradient), times


def clipped(gradient: Tensors, given: Tensors, target: Tensors) -> tuple[list[Tensor], Pullback]:
    """g min(1, C / |g|) over all tensors together; given: (C,), a scalar."""
    square = torch.stack([(g * g).sum() for g in gradient]).sum()
    factor, outside = _clipping(square, given[0])

    def back(direction: Tensors) -> list[Tensor]:
        along = torch.stack([(g * d).sum() for g, d in zip(gradient, direction, strict=True)]).sum()
        return [factor * (d - g * (outside * along)) for g, d in zip(gradient, direction, strict=True)]

    return [g * factor for g in gradient], back


def clipped_each(gradient: Tensors, given: Tensors, target: Tensors) -> tuple[list[Tensor], Pullback]:
    """As `clipped`, each tensor by itself at the same C."""
    parts = [clipped([g], given, []) for g in gradient]
    backs = [back for _, back in parts]
    return [values[0] for values, _ in parts], lambda direction: [
        back([d])[0] for back, d in zip(backs, direction, strict=True)
    ]


def _clipping(square: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """(the factor, 1 / |g|^2 where it is below 1 and otherwise 0). The Jacobian is factor (I - g g^T / |g|^2) there."""
    over = square > bound * bound
    factor = torch.where(over, bound * torch.rsqrt(square.clamp(min=TINY * TINY)), 1)
    return factor, over / square.clamp(min=TINY * TINY)


def smooth_signs(gradient: Tensors, given: Tensors, target: Tensors) -> tuple[list[Tensor], Pullback]:
    """g / (|g| + c a), where a is the mean of |g| over the tensor and c is SMOOTHNESS: the sign, with a slope.

    It does not depend on the scale of a tensor, as the sign does not.
    """
    means = [g.abs().mean() for g in gradient]
    under = [g.abs() + SMOOTHNESS * a.clamp(min=TINY) for g, a in zip(gradient, means, strict=True)]

    def back(direction: Tensors) -> list[Tensor]:
        out = []
        for g, d, a, u in zip(gradient, direction, means, under, strict=True):
            # dy_i/dg_i = c a / u^2 with a fixed; and a moves with every entry: dy_i/da = -c g_i / u^2.
            slope = SMOOTHNESS * d / (u * u)
            out.append(a * slope - g.sign() * (slope * g).mean())
        return out

    return [g / u for g, u in zip(gradient, under, strict=True)], back


def mean_sized_signs(gradient: Tensors, given: Tensors, target: Tensors) -> tuple[list[Tensor], Pullback]:
    """a g / (|g| + c a): the smooth sign times the mean of |g| over the tensor."""
    sizes = [g.abs().mean() for g in gradient]
    signs, inner = smooth_signs(gradient, given, target)

    def back(direction: Tensors) -> list[Tensor]:
        by_sign = inner([a * d for a, d in zip(sizes, direction, strict=True)])
        return [
            b + g.sign() * ((d * s).sum() / g.numel())
            for b, g, d, s in zip(by_sign, gradient, direction, signs, strict=True)
        ]

    return [a * s for a, s in zip(sizes, signs, strict=True)], back


def beyond_cells(gradient: Tensors, given: Tensors, target: Tensors) -> tuple[list[Tensor], Pullback]:
    """What of g lies outside the cell around t, put beside t: t + sign(g - t) max(|g - t| - h, 0).

    given: h, half the width of the cells, for each tensor. Every g within h of t is as good as t itself.
    """
    off = [g - t for g, t in zip(gradient, target, strict=True)]
    rest = [torch.relu(d.abs() - h) * d.sign() for d, h in zip(off, given, strict=True)]

    def back(direction: Tensors) -> list[Tensor]:
        return [d * (o.abs() > h) for d, o, h in zip(direction, off, given, strict=True)]

    return [t + r for t, r in zip(target, rest, strict=True)], back
