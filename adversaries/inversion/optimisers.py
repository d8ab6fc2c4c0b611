"""Steps on the guess. Tensors only: nothing here waits for a device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class SignedAdam:
    """Adam (Kingma & Ba 2015) on the sign of the gradient, as Geiping et al. (2020) run it.

    step_size, beta_1, beta_2, epsilon: Adam's own. signed: take the sign of the gradient first.
    """

    step_size: float
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    signed: bool = True
    _count: int = 0
    _first: Tensor | None = None
    _second: Tensor | None = None

    def step(self, x: Tensor, gradient: Tensor, factor: float) -> Tensor:
        """The next guess. factor: what the schedule makes of the step size."""
        g = gradient.sign() if self.signed else gradient
        if self._first is None or self._second is None:
            self._first, self._second = torch.zeros_like(x), torch.zeros_like(x)
        self._count += 1
        self._first = self._first.lerp(g, 1 - self.beta_1)
        self._second = self._second.lerp(g * g, 1 - self.beta_2)
        mean = self._first / (1 - self.beta_1**self._count)
        scale = (self._second / (1 - self.beta_2**self._count)).sqrt() + self.epsilon
        return x - self.step_size * factor * mean / scale


def three_drops(step: int, steps: int) -> float:
    """0.1 for each of 3/8, 5/8 and 7/8 of the way that is over (Geiping et al. 2020, appendix)."""
    return 0.1 ** sum(step >= steps * eighths / 8 for eighths in (3, 5, 7))
