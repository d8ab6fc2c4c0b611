"""Run a grid: trainings first, each cell as soon as its model is there, several at once, and never twice."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from fedsim import manifest as manifests
from fedsim.errors import QUARANTINED
from fedsim.experiment import Experiment
from fedsim.sweeps.cells import Cell, Grid, Training, with_threads
from fedsim.sweeps.folder import SweepFolder, clear, mark_failed
from fedsim.sweeps.pool import Message, Pool

Kind = Literal["training", "timing", "cell"]


@dataclass(frozen=True)
class Order:
    """A piece of work, as a worker gets it: an experiment to run in a folder, or a training to measure the cost of.

    folder: of the run; of a timing, the file. facts: for the manifest. baseline: what a timing is compared with.
    """

    kind: Kind
    experiment: Experiment
    folder: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    baseline: Experiment | None = None


@dataclass(frozen=True)
class _Step:
    """A piece of work and what has to be there before it. key: where in the sweep's folder its outcome goes."""

    key: str
    name: str
    kind: Kind
    of: Training | Cell
    needs: Training | None = None
    baseline: Training | None = None


class Watcher(Protocol):
    """Whoever shows how far a sweep is."""

    def begin(self, total: int, done: int) -> None:
        """So many pieces of work there are, and so many had been done before."""
        ...

    def started(self, kind: Kind, name: str) -> None:
        """A piece of work has begun."""
        ...

    def moved(self, kind: Kind, name: str, word: str, facts: tuple[Any, ...]) -> None:
        """A run tells: "rounds" (done, total, record), "attack" (name, done, total, note), "warn" (text)."""
        ...

    def ended(self, kind: Kind, name: str, error: str | None, seconds: float) -> None:
        """A piece of work is over."""
        ...


@dataclass
class Tally:
    """What a sweep came to: names of cells and trainings."""

    ran: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    """Done before."""
    failed: dict[str, str] = field(default_factory=dict)
    """With the reason."""
    quarantined: list[str] = field(default_factory=list)
    """Cells with an attack that failed."""

    @property
    def code(self) -> int:
        """The exit code."""
        return 1 if self.failed else QUARANTINED if self.quarantined else 0


def default_jobs(grid: Grid, gpu: bool) -> int:
    """As many processes as the machine has cores for, each with the threads that its cell asks for; one on a GPU."""
    if gpu:
        return 1
    threads = max((one.runtime.threads or 1 for one in grid.experiments), default=1)
    return max(1, cores() // threads)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pending(grid: Grid, folder: SweepFolder) -> tuple[list[Training], list[Cell]]:
    """What has not been run yet: trainings that a cell still needs, and cells."""
    cells = [cell for cell in grid.cells if not folder.is_done(cell)]
    return [one for one in grid.trainings if not folder.is_trained(one)], cells


class Runner:
    """Runs what is pending of one grid. pool: does the work. threads: of each run that names no number itself."""

    def __init__(self, grid: Grid, folder: SweepFolder, pool: Pool, threads: int | None, show: Watcher) -> None:
        self.folder, self.threads, self.show = folder, threads, show
        self.pool, self.tally = pool, Tally()
        self._began: dict[str, float] = {}
        self._running: dict[str, _Step] = {}
        trainings, cells = pending(grid, folder)
        self._untrained = {one.hash for one in trainings}
        self._lost: set[str] = set()
        self._waiting = [_Step(one.folder, _named(one), "training", one) for one in trainings]
        for one, base in _timings(grid, folder):
            self._waiting.append(
                _Step(str(folder.timing(one)), f"time of {_named(one)}", "timing", one, needs=one, baseline=base)
            )
        # Two combinations of points may come to the same experiment of the same name; it is run once.
        for cell in {cell.folder: cell for cell in cells}.values():
            self._waiting.append(_Step(cell.folder, cell.label, "cell", cell, needs=cell.training))
        for cell in grid.cells:
            if folder.is_done(cell):
                self.tally.found.append(cell.label)
                if manifests.read(folder.cell(cell)).get("exit") == QUARANTINED:
                    self.tally.quarantined.append(cell.label)
        self.tally.found += [_named(one) for one in grid.trainings if folder.is_trained(one)]

    def run(self) -> Tally:
        """Until nothing is left. Whatever ends it early ends the workers too, and leaves what is done."""
        self.show.begin(len(self._waiting) + len(self.tally.found), len(self.tally.found))
        try:
            self._start()
            while self._running:
                for message in self.pool.messages(1.0):
                    self._hear(message)
                self._start()
        finally:
            self.pool.stop()
        return self.tally

    def _start(self) -> None:
        """Give free workers the first steps that can be taken. What needs a model that could not be trained fails."""
        for step in [step for step in self._waiting if step.needs and step.needs.hash in self._lost]:
            self._waiting.remove(step)
            if step.needs and step.kind == "cell":
                self._ended(step, f"{_named(step.needs)} failed, so there is no model to attack", 1)
        while self.pool.free:
            ready = [step for step in self._waiting if not step.needs or step.needs.hash not in self._untrained]
            if not ready:
                return
            step = ready[0]
            self._waiting.remove(step)
            self._running[step.key] = step
            self._began[step.key] = time.monotonic()
            self.pool.start(step.key, self._order(step))
            self.show.started(step.kind, step.name)

    def _hear(self, message: Message) -> None:
        step = self._running[message.piece]
        if message.word == "done":
            self._ended(step, None, message.facts[0])
        elif message.word == "failed":
            self._ended(step, str(message.facts[0]), 1)
        else:
            self.show.moved(step.kind, step.name, message.word, message.facts)

    def _order(self, step: _Step) -> Order:
        if isinstance(step.of, Cell):
            run, training = self.folder.cell(step.of), step.of.training
            clear(run)
            experiment = step.of.prepared(self.folder.checkpoint(training) if training else None, self.threads)
            return Order("cell", experiment, run.path, {"content_sha256": step.of.hash, "at": dict(step.of.at)})
        experiment = with_threads(step.of.experiment, self.threads)
        if step.baseline is not None:
            base = with_threads(step.baseline.experiment, self.threads)
            facts = {"training": step.of.hash, "baseline": step.baseline.hash}
            return Order("timing", experiment, self.folder.timing(step.of), facts, base)
        run = self.folder.model(step.of)
        clear(run)
        return Order("training", experiment, run.path, {"content_sha256": step.of.hash})

    def _ended(self, step: _Step, error: str | None, code: int) -> None:
        self._running.pop(step.key, None)
        if error is None and step.kind == "training":
            assert isinstance(step.of, Training)
            if not self.folder.is_trained(step.of):
                error = f"it ended without the model of round {step.of.attack_round}"
        if step.kind == "training":
            (self._untrained.discard if error is None else self._lost.add)(step.of.hash)
        if error is None:
            self.tally.ran.append(step.name)
            if code == QUARANTINED:
                self.tally.quarantined.append(step.name)
        else:
            self.tally.failed[step.name] = error
            # Into the folder, so that results can be collected from there alone.
            if step.kind != "timing":
                run = self.folder.cell(step.of) if isinstance(step.of, Cell) else self.folder.model(step.of)
                mark_failed(run, step.of.hash, error)
        began = self._began.get(step.key, time.monotonic())
        self.show.ended(step.kind, step.name, error, time.monotonic() - began)


def _timings(grid: Grid, folder: SweepFolder) -> list[tuple[Training, Training]]:
    """Trainings whose cost is still to be measured, with their baselines."""
    pairs = {one.training.hash: (one.training, one.baseline) for one in grid.cells if one.training and one.baseline}
    return [(one, base) for one, base in pairs.values() if one.hash != base.hash and not folder.is_timed(one, base)]


def _named(training: Training) -> str:
    return f"training {training.hash[:8]}"
