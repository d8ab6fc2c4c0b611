"""L-BFGS with a strong Wolfe line search (torch.optim's), for one trial at a time: its steps ask for the objective's
value, so the loop waits for the device at each.
"""

from __future__ import annotations

import math
import time

import torch

from fedsim import progress
from fedsim.adversaries.inversion.engines import Engine
from fedsim.adversaries.inversion.loop import PLATEAU, REPORT_EVERY, Budget, Search, Trial
from fedsim.adversaries.inversion.step import Guess

HISTORY = 100
"""Steps that the estimate of the curvature remembers, torch's default."""


def run_lbfgs(engine: Engine, start: Guess, search: Search, budget: Budget, offset: int, total: int) -> Trial:
    """Improve a stack of one first guess. A step is one direction with its line search; the box is applied at the end.

    `offset` of `total` steps of all trials are over, for the progress report.
    """
    names = list(start)
    leaves = [start[name].clone().requires_grad_(True) for name in names]
    optimiser = torch.optim.LBFGS(
        leaves,
        lr=search.optimiser.step_size,
        max_iter=REPORT_EVERY,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        value, slopes = engine.evaluate({name: leaf.detach() for name, leaf in zip(names, leaves, strict=True)})
        for name, leaf in zip(names, leaves, strict=True):
            leaf.grad = slopes[name]
        return value[0]

    history: list[tuple[int, float]] = []
    begun, done, best, stale, status = time.monotonic(), 0, math.inf, 0, "done"
    good = {name: leaf.detach().clone() for name, leaf in zip(names, leaves, strict=True)}
    while True:
        value = float(closure())
        if not math.isfinite(value) or not all(bool(torch.isfinite(leaf).all()) for leaf in leaves):
            status = "nan"
            break
        history.append((done, value))
        good = {name: leaf.detach().clone() for name, leaf in zip(names, leaves, strict=True)}
        progress.report(offset + done, total, f"objective {value:.4g}")
        if done >= budget.steps:
            break
        stale = 0 if value < best - PLATEAU * abs(best) or best == math.inf else stale + 1
        best = min(best, value)
        if budget.patience and stale >= budget.patience:
            status = "plateau"
            break
        if budget.seconds is not None and time.monotonic() - begun >= budget.seconds:
            status = "time"
            break
        optimiser.param_groups[0]["max_iter"] = min(REPORT_EVERY, budget.steps - done)
        optimiser.step(closure)
        now = optimiser.state[optimiser._params[0]]["n_iter"]
        if all(torch.equal(leaf, good[name]) for name, leaf in zip(names, leaves, strict=True)):
            status = "plateau"  # no direction leads down any more, within what the numbers can tell
            break
        done = now
    if search.low is not None and search.high is not None:
        good["images"] = good["images"].clamp(search.low, search.high)
    return Trial(
        {name: value[0] for name, value in good.items()},
        history[-1][1] if history else math.inf,
        done,
        tuple(history),
        status,
    )
