"""How far the guess's gradient is from the one that was seen: a scalar, and its derivative by the guess's gradient.

The derivative is in closed form because the engine does not differentiate through the objective (see engine.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Objective = Callable[[Sequence[Tensor]], tuple[Tensor, list[Tensor]]]
"""gradient of the guess -> (objective, its derivative by each of the gradient's tensors)."""


def cosine(target: Sequence[Tensor], masks: Sequence[Tensor] | None = None) -> Objective:
    """1 - <g, t> / (|g| |t|) over all parameters together (Geiping et al. 2020, equation 4); in [0, 2].

    masks: 1 where an entry counts and 0 where it does not, one a tensor. Both gradients are taken as zero elsewhere.
    The derivative is written into the same tensors at every call.
    """
    kept = list(target) if masks is None else [t * m for t, m in zip(target, masks, strict=True)]
    # As large as the model, so they are made once: fresh pages for them at every step cost more than the arithmetic.
    room = [torch.empty_like(t) for t in kept]
    masked = [] if masks is None else [torch.empty_like(t) for t in kept]
    length = _inner(kept, kept, room).sqrt()

    def objective(gradient: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        # Where entries do not count, `kept` is zero, so only |g| needs the masks.
        g = gradient
        if masks is not None:
            g = [torch.mul(a, m, out=out) for a, m, out in zip(gradient, masks, masked, strict=True)]
        square = _inner(g, g, room)
        similarity = _inner(g, kept, room) / (square.sqrt() * length)
        # d/dg of -<g, t> / (|g| |t|)
        along_g, along_t = similarity / square, -1 / (square.sqrt() * length)
        for a, t, out in zip(g, kept, room, strict=True):
            torch.mul(a, along_g, out=out).addcmul_(t, along_t)
        return 1 - similarity, room

    return objective


def squared_l2(target: Sequence[Tensor]) -> Objective:
    """sum (g - t)^2 over all parameters (Zhu et al. 2019, equation 4)."""

    def objective(gradient: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        difference = [a - t for a, t in zip(gradient, target, strict=True)]
        return _norm(difference).square(), [2 * d for d in difference]

    return objective


def _inner(one: Sequence[Tensor], other: Sequence[Tensor], room: Sequence[Tensor]) -> Tensor:
    """<one, other> over all tensors together; overwrites `room`.

    Multiplied, then summed, because torch sums pairwise. `torch.dot` and `vector_norm` add up one float32 after the
    other: over the 6 million entries of convnet6 that is wrong by up to 7e-4 on a CPU, more than the whole objective
    of a good guess, and bends its derivative.
    """
    return torch.stack([torch.mul(a, b, out=out).sum() for a, b, out in zip(one, other, room, strict=True)]).sum()


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(value) for value in tensors]))
