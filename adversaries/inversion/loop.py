"""The loop: improves a stack of guesses step by step, looks at how they are doing now and then, and knows when to
end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim import progress
from fedsim.adversaries.inversion import priors
from fedsim.adversaries.inversion.engines import Engine, captured, in_a_line
from fedsim.adversaries.inversion.optimisers import SGD, Adam
from fedsim.adversaries.inversion.step import Guess

REPORT_EVERY = 20
"""Steps between two looks at the objective. Each look waits for the device, so the loop itself never does."""

PLATEAU = 1e-3
"""The objective has to fall by this share of itself for a look to count as progress."""


@dataclass(frozen=True)
class Budget:
    """When to end. steps: at the latest. patience: looks without progress of any trial (0: never give up so).
    seconds: of wall time (None: no limit; with one, how far a trial comes depends on the machine).
    """

    steps: int
    patience: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Search:
    """How the guesses move.

    factors: of the step size, one a step. low, high: the box of valid pixels, (1, C, 1, 1), or None for no box.
    langevin: the standard deviation of noise added to each step, in units of its size (Yin et al. 2021).
    group: the weight of consistency between the `restarts` trials of a victim.
    """

    optimiser: Adam | SGD
    factors: Sequence[float]
    low: Tensor | None = None
    high: Tensor | None = None
    langevin: float = 0.0
    group: float = 0.0
    restarts: int = 1


@dataclass(frozen=True)
class Trial:
    """The outcome of one trial: the last finite guess, and how it went. status: "done", "nan", "plateau" or "time"."""

    guess: Guess
    objective: float
    steps: int
    history: tuple[tuple[int, float], ...]
    status: str


def run(engine: Engine, start: Guess, search: Search, budget: Budget, rngs: Sequence[torch.Generator]) -> list[Trial]:
    """Improve a stack of first guesses. rngs: one a victim, so that company changes nothing of what it is dealt.

    Every `REPORT_EVERY` steps the objectives are looked at. A trial whose objective or guess is no longer finite
    counts as of its last finite look, with the status "nan"; the others go on.
    """
    iteration = _Iteration(engine, start, search, rngs)
    watch = _Watch(iteration.guess(), budget)
    done, status = 0, "done"
    while done < budget.steps:
        count = min(REPORT_EVERY, budget.steps - done)
        values = iteration.ahead(count, look_at=0)
        # The values are of the guess before these steps, which the watch has kept.
        ending = watch.look(done, values)
        progress.report(done, budget.steps, watch.note())
        if ending:
            status = ending
            break
        done += count
        watch.next(iteration.guess())
    if status == "done":
        watch.look(done, iteration.value())
    progress.report(budget.steps, budget.steps, watch.note())
    return watch.trials(done, status)


class _Iteration:
    """The state of all trials on the device, and how it advances."""

    def __init__(self, engine: Engine, start: Guess, search: Search, rngs: Sequence[torch.Generator]) -> None:
        self._engine, self._search = engine, search
        device = start["images"].device
        self._names = list(start)
        guess = {name: value.clone() for name, value in start.items()}
        self._box(guess)
        self._state: Guess = {f"guess/{name}": value for name, value in guess.items()}
        moments = search.optimiser.start(guess)
        self._moments = list(moments)
        self._state |= moments
        self._state["count"] = torch.zeros((), device=device)
        self._state["value"] = torch.zeros(len(start["images"]), dtype=start["images"].dtype, device=device)
        self._factors = torch.tensor(list(search.factors) or [1.0], device=device)
        self._noises: list[torch.Generator] = []
        if search.langevin:
            for rng in rngs:
                self._noises.append(torch.Generator(device))
                self._noises[-1].manual_seed(int(torch.randint(2**62, (), generator=rng)))
            self._state["noise"] = torch.zeros_like(start["images"])
        self._replay: Callable[[], None] | None = None
        if engine.name == "cudagraph":
            try:
                self._replay = captured(self._advance, self._state)
            except RuntimeError as error:
                # A layer that waits for the device, or too little memory: no reason not to attack.
                engine.name = "eager"
                engine.notes.append(f"eager instead of cudagraph: {in_a_line(error)}")

    def guess(self) -> Guess:
        """The guesses as they are; not a copy unless the graph writes into them."""
        guess = {name: self._state[f"guess/{name}"] for name in self._names}
        return {name: value.clone() for name, value in guess.items()} if self._replay else guess

    def value(self) -> Tensor:
        """The objectives of the guesses as they are."""
        return self._measure(self.guess())[0]

    def ahead(self, steps: int, look_at: int) -> Tensor:
        """Take so many steps; returns the objectives before one of them."""
        kept: Tensor | None = None
        for number in range(steps):
            for place, noise in enumerate(self._noises):
                own = slice(place * self._search.restarts, (place + 1) * self._search.restarts)
                self._state["noise"][own].normal_(generator=noise)
            if self._replay is not None:
                self._replay()
            else:
                self._state = self._advance(self._state)
            if number == look_at:
                kept = self._state["value"].clone()
        assert kept is not None
        return kept

    def _measure(self, guess: Guess) -> tuple[Tensor, Guess]:
        value, slopes = self._engine.evaluate(guess)
        search = self._search
        if search.group and search.restarts > 1:
            # The trials of one victim are compared with one another, which no single step can do.
            by_victim = guess["images"].unflatten(0, (-1, search.restarts))
            each = [priors.group_consistency(images) for images in by_victim]
            value = value + search.group * torch.cat([term for term, _ in each])
            pull = search.group * torch.cat([slope for _, slope in each])
            slopes = {**slopes, "images": slopes["images"] + pull}
        return value, slopes

    def _advance(self, state: Guess) -> Guess:
        """One iteration as a pure function of the state."""
        search = self._search
        guess = {name: state[f"guess/{name}"] for name in self._names}
        value, slopes = self._measure(guess)
        count = state["count"] + 1
        factor = self._factors.gather(0, (count - 1).long().clamp(max=len(self._factors) - 1).reshape(1))[0]
        kept = {name: state[name] for name in self._moments}
        moved, kept = search.optimiser.step(guess, slopes, kept, count, factor)
        if "noise" in state:
            size = search.optimiser.step_size * search.langevin * factor
            moved = {**moved, "images": moved["images"] + size * state["noise"]}
        self._box(moved)
        out = {**kept, **{f"guess/{name}": moved[name] for name in moved}, "count": count, "value": value}
        return out | {name: state[name] for name in state if name not in out}

    def _box(self, guess: Guess) -> None:
        if self._search.low is not None and self._search.high is not None:
            guess["images"] = guess["images"].clamp(self._search.low, self._search.high)


class _Watch:
    """Keeps each trial's last finite guess, its history, and whether there is progress."""

    def __init__(self, guess: Guess, budget: Budget) -> None:
        self._budget = budget
        self._begun = time.monotonic()
        self._good = self._now = guess
        count = len(guess["images"])
        self._history: list[list[tuple[int, float]]] = [[] for _ in range(count)]
        self._broken: list[int | None] = [None] * count
        self._best = [math.inf] * count
        self._stale = 0

    def next(self, guess: Guess) -> None:
        """The guesses whose objectives the next look is about."""
        self._now = guess

    def look(self, done: int, values: Tensor) -> str | None:
        """Note the objectives of the guesses after `done` steps. Returns why to end, if there is a reason."""
        finite = torch.isfinite(values)
        for value in self._now.values():
            finite &= torch.isfinite(value.flatten(1)).all(1)
        fine = finite.tolist()
        if all(fine) and all(broken is None for broken in self._broken):
            self._good = self._now
        else:
            keep = torch.tensor([ok and self._broken[i] is None for i, ok in enumerate(fine)], device=values.device)
            self._good = {
                name: torch.where(keep.reshape(-1, *([1] * (value.dim() - 1))), value, self._good[name])
                for name, value in self._now.items()
            }
        progress_ = False
        for place, (value, ok) in enumerate(zip(values.tolist(), fine, strict=True)):
            if not ok and self._broken[place] is None:
                self._broken[place] = done
            if self._broken[place] is None:
                self._history[place].append((done, value))
                if value < self._best[place] - PLATEAU * abs(self._best[place]) or self._best[place] == math.inf:
                    self._best[place] = value
                    progress_ = True
        self._stale = 0 if progress_ else self._stale + 1
        if all(broken is not None for broken in self._broken):
            return "nan"
        if self._budget.patience and self._stale >= self._budget.patience:
            return "plateau"
        if self._budget.seconds is not None and time.monotonic() - self._begun >= self._budget.seconds:
            return "time"
        return None

    def note(self) -> str:
        """The smallest objective of the last look, for whoever watches."""
        last = [history[-1][1] for history in self._history if history]
        return f"objective {min(last):.4g}" if last else ""

    def trials(self, done: int, status: str) -> list[Trial]:
        """The outcome."""
        return [
            Trial(
                {name: value[place].detach() for name, value in self._good.items()},
                history[-1][1] if history else math.inf,
                done if broken is None else broken,
                tuple(history),
                status if broken is None else "nan",
            )
            for place, (history, broken) in enumerate(zip(self._history, self._broken, strict=True))
        ]
