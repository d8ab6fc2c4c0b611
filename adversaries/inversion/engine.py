"""The loop that inverts a gradient.

One step needs the derivative by the guess x of O(g(x)), where g(x) is the gradient of the loss by the parameters. With
v = dO/dg, that is the derivative by x of <v, g(x)>, and <v, g(x)> is the Jacobian-vector product of the loss by the
parameters along v. So a step is one reverse pass for g(x), v in closed form, and one reverse pass through a forward-mode
derivative; g(x) itself is never differentiated through, and no gradient is written into a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

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
    gradient = torch.autograd.grad(
        loss, list(weights.values()), retain_graph=prior is not None, allow_unused=True, materialize_grads=True
    )
    with torch.no_grad():
        value, direction = problem.objective(gradient)
    total, slope = value, torch.zeros_like(x)
    if prior is not None:
        total = value + prior.detach()
        (slope,) = torch.autograd.grad(prior, x)

    def loss_of(some: dict[str, Tensor]) -> Tensor:
        return cross_entropy(functional_call(problem.model, some, (x,)), problem.labels)

    point = {name: weight.detach() for name, weight in weights.items()}
    _, along = jvp(loss_of, (point,), (dict(zip(point, direction, strict=True)),))
    return total, slope + torch.autograd.grad(along, x)[0]


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
