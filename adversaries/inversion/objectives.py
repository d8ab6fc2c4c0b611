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
    """
    kept = list(target) if masks is None else [t * m for t, m in zip(target, masks, strict=True)]
    length = _norm(kept)

    def objective(gradient: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        g = gradient if masks is None else [a * m for a, m in zip(gradient, masks, strict=True)]
        norm = _norm(g)
        dot = torch.stack([torch.dot(a.flatten(), t.flatten()) for a, t in zip(g, kept, strict=True)]).sum()
        similarity = dot / (norm * length)
        # d/dg of -<g, t> / (|g| |t|)
        along_g, along_t = similarity / norm.square(), -1 / (norm * length)
        return 1 - similarity, [a * along_g + t * along_t for a, t in zip(g, kept, strict=True)]

    return objective


def squared_l2(target: Sequence[Tensor]) -> Objective:
    """sum (g - t)^2 over all parameters (Zhu et al. 2019, equation 4)."""

    def objective(gradient: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        difference = [a - t for a, t in zip(gradient, target, strict=True)]
        return _norm(difference).square(), [2 * d for d in difference]

    return objective


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(value) for value in tensors]))
