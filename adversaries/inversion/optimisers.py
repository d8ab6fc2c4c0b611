"""Steps on the guess, as pure functions of tensors: nothing here waits for a device, and all of it can be captured.

A guess is a dictionary of tensors whose first dimension counts trials. L-BFGS, whose line search cannot work on several
trials at once, is in lbfgs.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015), by default on the sign of the gradient, as Geiping et al. (2020) run it.

    step_size, beta_1, beta_2, epsilon: Adam's own. signed: take the sign of the gradient first.
    """

    step_size: float
    signed: bool = True
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8

    def start(self, guess: Tensors) -> Tensors:
        """The state before the first step."""
        return {f"{kind}/{name}": torch.zeros_like(x) for name, x in guess.items() for kind in ("first", "second")}

    def step(
        self, guess: Tensors, slopes: Tensors, state: Tensors, count: Tensor, factor: Tensor
    ) -> tuple[Tensors, Tensors]:
        """(next guess, next state). count: steps with this one, from 1. factor: what the schedule makes of the step
        size.
        """
        moved: Tensors = {}
        kept: Tensors = {}
        for name, x in guess.items():
            g = _sign(slopes[name]) if self.signed else slopes[name]
            first = state[f"first/{name}"].lerp(g, 1 - self.beta_1)
            second = state[f"second/{name}"].lerp(g * g, 1 - self.beta_2)
            scale = (second / (1 - self.beta_2**count)).sqrt() + self.epsilon
            moved[name] = x - self.step_size * factor * (first / (1 - self.beta_1**count)) / scale
            kept |= {f"first/{name}": first, f"second/{name}": second}
        return moved, kept


@dataclass(frozen=True)
class SGD:
    """x - step_size * gradient, or its sign."""

    step_size: float
    signed: bool = False

    def start(self, guess: Tensors) -> Tensors:
        """There is no state."""
        return {}

    def step(
        self, guess: Tensors, slopes: Tensors, state: Tensors, count: Tensor, factor: Tensor
    ) -> tuple[Tensors, Tensors]:
        """(next guess, next state); see `Adam.step`."""
        return {
            name: x - self.step_size * factor * (_sign(slopes[name]) if self.signed else slopes[name])
            for name, x in guess.items()
        }, state


def _sign(slope: Tensor) -> Tensor:
    """As torch's, which makes 0 of NaN and so would hide it."""
    return torch.where(slope.isnan(), slope, slope.sign())


def schedule(kind: str, steps: int, warm_up: int = 0) -> list[float]:
    """The factor on the step size for each step.

    constant: 1. three_drops: 0.1 for each of 3/8, 5/8 and 7/8 of the way that is over (Geiping et al. 2020, appendix).
    cosine: (1 + cos(pi t)) / 2 and linear: 1 - t, where t goes from 0 to 1. In the first `warm_up` steps the factor
    rises evenly to where the rest begins.
    """
    laws = {
        "constant": lambda step: 1.0,
        "three_drops": lambda step: 0.1 ** sum(step * 8 >= steps * eighths for eighths in (3, 5, 7)),
        "cosine": lambda step: (1 + math.cos(math.pi * step / steps)) / 2,
        "linear": lambda step: 1 - step / steps,
    }
    return [laws[kind](step) * min(1.0, (step + 1) / (warm_up + 1)) for step in range(steps)]
