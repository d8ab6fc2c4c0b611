"""The loop that inverts a gradient.

One step needs the derivative by the guess x of O(g(x)), where g(x) is the gradient of the loss by the parameters. With
v = dO/dg in closed form, that is the vector-Jacobian product of g along v: a reverse pass for g(x), then one through
it. The objective itself is never recorded for differentiation, which saves several passes over all parameters, and no
gradient is written into a parameter.

The same derivative is that of a Jacobian-vector product of the loss along v, in forward mode, at about the same cost.
But torch 2.15 differentiates the forward mode of BatchNorm (by the batch's own statistics), InstanceNorm and
LayerNorm wrongly, without a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim import progress
from fedsim.adversaries.inversion.objectives import Objective
from fedsim.adversaries.inversion.optimisers import SignedAdam, three_drops
from fedsim.models.loss import cross_entropy

REPORT_EVERY = 20
"""Steps between two looks at the objective. Each look waits for the device, so the loop itself never does."""

Prior = Callable[[Tensor], Tensor]
"""The guess (normalised), right after a forward pass on it -> a scalar, with its graph."""


@dataclass(frozen=True)
class Problem:
    """All that a step depends on but the guess.

    labels: of the guess, int64 (N,) or soft (N, classes). low, high: the box of valid pixels, (1, C, 1, 1).
    """

    model: nn.Module
    parameters: dict[str, Tensor]
    labels: Tensor
    objective: Objective
    prior: Prior | None
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Trial:
    """The outcome of one trial: the guess in normalised space, and how it went."""

    guess: Tensor
    objective: float
    steps: int
    history: tuple[tuple[int, float], ...]
    status: str


def gradient_step(problem: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
    """(objective with priors, its derivative by the guess). Pure; x: (N, C, H, W), normalised."""
    x = x.detach().requires_grad_(True)
    weights = {name: value.detach().requires_grad_(True) for name, value in problem.parameters.items()}
    loss = cross_entropy(functional_call(problem.model, weights, (x,)), problem.labels)
    prior = problem.prior(x) if problem.prior else None
    # A parameter that the loss does not use has a gradient of zero, which does not depend on x.
    gradient = torch.autograd.grad(
        loss, list(weights.values()), create_graph=True, allow_unused=True, materialize_grads=True
    )
    with torch.no_grad():
        total, direction = problem.objective([value.detach() for value in gradient])
    ends = [(value, along) for value, along in zip(gradient, direction, strict=True) if value.requires_grad]
    if prior is not None:
        total = total + prior.detach()
        ends.append((prior, torch.ones_like(prior)))
    outputs, directions = zip(*ends, strict=True)
    (slope,) = torch.autograd.grad(outputs, x, directions)
    return total, slope


def run_trial(problem: Problem, start: Tensor, optimiser: SignedAdam, steps: int, offset: int, total: int) -> Trial:
    """Improve a first guess. `offset` of `total` steps of all trials are over, for the progress report.

    Every `REPORT_EVERY` steps the objective is looked at; once it is not finite, the guess of the last look is returned
    with the status "nan".
    """
    x = start.clamp(problem.low, problem.high)
    good, history, status = x, [], "done"
    step = 0
    for step in range(steps):
        value, slope = gradient_step(problem, x)
        if step % REPORT_EVERY == 0:
            now = float(value)
            if not math.isfinite(now) or not bool(torch.isfinite(slope).all()):
                status = "nan"
                break
            good = x
            history.append((step, now))
            progress.report(offset + step, total, f"objective {now:.4g}")
        x = optimiser.step(x, slope, three_drops(step, steps)).clamp(problem.low, problem.high)
    if status == "done":
        step = steps
        value, _ = gradient_step(problem, x)
        if math.isfinite(float(value)) and bool(torch.isfinite(x).all()):
            good = x
            history.append((steps, float(value)))
        else:
            status = "nan"
    last = history[-1][1] if history else math.inf
    return Trial(good.detach(), last, step, tuple(history), status)
