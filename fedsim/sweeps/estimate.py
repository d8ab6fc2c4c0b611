"""What a sweep would cost on this machine: its steps counted, times a step measured in a short trial.

A rough figure, for the choice between a coffee and a cluster. Counted are the forward and backward passes of training,
of attacks that iterate, and of evaluation; not the scores, nor what defenses and closed-form attacks compute.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedsim.errors import FedsimError
from fedsim.experiment import AdversaryEntry, Component, Experiment
from fedsim.sweeps.cells import Cell, Training, with_threads

ATTACK_STEP = 5.0
"""Passes that an attack's step costs: it differentiates twice. Measured on a CPU: 4.2 to 4.4, and the prior."""

TRAINING_STEP = 2.2
"""Passes that a step of training costs, with what a round adds to it."""

EVALUATION = 1 / 3
"""Passes that it takes to evaluate as many images: forward alone."""

TRIAL = 4.0
"""Seconds for all trials together."""

HERE = "on this machine"

MOST_IMAGES = 32
"""In a trial on a CPU, where the time of a larger batch grows with its images."""


@dataclass(frozen=True)
class Stage:
    """One kind of work. passes: forward and backward, of a batch each. seconds: if one process did it all."""

    name: str
    runs: int
    passes: float
    seconds: float


@dataclass(frozen=True)
class Cost:
    """The estimate. hours: with all processes at work; None where it cannot be told, and then `note` says why."""

    stages: tuple[Stage, ...]
    jobs: int
    hours: float | None
    note: str = ""
    step_seconds: dict[str, float] = field(default_factory=dict)
    """A pass, as measured, by model and images."""

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {"stages": [asdict(stage) for stage in self.stages], "hours": self.hours, "note": self.note}

    def lines(self, where: str = HERE) -> Iterator[str]:
        """For people. where: the processes are, in words."""
        if self.hours is None:
            yield f"the cost cannot be estimated: {self.note}"
            return
        yield f"{'stage':22}{'runs':>6}{'passes':>14}{'hours of one process':>24}"
        for stage in self.stages:
            yield f"{stage.name:22}{stage.runs:6}{stage.passes:14,.0f}{stage.seconds / 3600:24.3g}"
        for name, seconds in self.step_seconds.items():
            yield f"a pass of {name} takes {seconds * 1000:.3g} ms here"
        speed = "" if where == HERE else ", if that is as fast as this machine"
        yield f"about {spoken(self.hours)} with {self.jobs} process{'es' * (self.jobs > 1)} {where}{speed}{self.note}"


@dataclass
class _Bill:
    """Counts up passes, and what they take."""

    clock: _Clock
    passes: float = 0.0
    seconds: float = 0.0

    def add(self, experiment: Experiment, images: int, passes: float) -> None:
        self.passes += passes
        self.seconds += passes * self.clock.seconds(experiment, images)


class _Clock:
    """Measures a pass of each model and batch, once."""

    def __init__(self, different: int) -> None:
        self._share = TRIAL / max(different, 1)
        self._known: dict[tuple[Component, Component, str, int], float] = {}

    def seconds(self, experiment: Experiment, images: int) -> float:
        """Of a forward and backward pass with so many images."""
        from fedsim.devices import choose_device

        device = choose_device(experiment.runtime.device)
        measured = min(images, MOST_IMAGES) if device.type == "cpu" else images
        key = (experiment.model, experiment.data.dataset, str(device), measured)
        if key not in self._known:
            self._known[key] = _measure(experiment, measured, self._share)
        return self._known[key] * images / measured

    def named(self) -> dict[str, float]:
        """For people."""
        return {f"{key[0].name} with {key[3]} images on {key[2]}": value for key, value in self._known.items()}


def estimate(trainings: Sequence[Training], cells: Sequence[Cell], jobs: int, threads: int | None) -> Cost:
    """The cost of what is to be run. Imports torch and loads the data, which the trial needs."""
    import torch

    before = torch.get_num_threads()
    try:
        return _estimate(
            [with_threads(one.experiment, threads) for one in trainings],
            [with_threads(one.experiment, threads) for one in cells],
            jobs,
        )
    except FedsimError as error:
        return Cost((), jobs, None, str(error))
    finally:
        torch.set_num_threads(before)


def step_seconds(experiment: Experiment, images: int) -> float:
    """Of a forward and backward pass of the experiment's model with so many images on this machine, as measured in a
    few seconds. Imports torch and loads the data.
    """
    return _Clock(1).seconds(experiment, images)


def spoken(hours: float) -> str:
    """`40 seconds`, `12 minutes`, `3.2 hours`, `12 days`."""
    for unit, size, most in (("seconds", 1 / 3600, 90), ("minutes", 1 / 60, 90), ("hours", 1, 72)):
        if hours / size < most:
            return f"{hours / size:.2g} {unit}"
    return f"{hours / 24:,.0f} days"


def _estimate(trainings: Sequence[Experiment], cells: Sequence[Experiment], jobs: int) -> Cost:
    kinds = {(one.model, one.data.dataset, one.clients.batch_size) for one in (*trainings, *cells)}
    clock = _Clock(len(kinds))
    trained, rounds, attacked = _Bill(clock), _Bill(clock), _Bill(clock)
    longest = [0.0, 0.0]
    for experiment in trainings:
        before = trained.seconds
        _train(experiment, trained)
        longest[0] = max(longest[0], trained.seconds - before)
    for experiment in cells:
        before = rounds.seconds + attacked.seconds
        _train(experiment, rounds)
        for entry in experiment.adversaries:
            _attack(experiment, entry, attacked)
        longest[1] = max(longest[1], rounds.seconds + attacked.seconds - before)
    stages = (
        Stage("trainings", len(trainings), trained.passes, trained.seconds),
        Stage("rounds of the cells", len(cells), rounds.passes, rounds.seconds),
        Stage("attacks", len(cells), attacked.passes, attacked.seconds),
    )
    # No number of processes makes the longest chain of a training and a cell shorter.
    seconds = max(sum(stage.seconds for stage in stages) / jobs, sum(longest))
    closed = {
        entry.plugin.name
        for experiment in cells
        for entry in experiment.adversaries
        if not hasattr(entry.plugin.settings, "iterations")
    }
    note = f"; not counted: {', '.join(sorted(closed))}" if closed else ""
    return Cost(stages, jobs, seconds / 3600, note, clock.named())


def _train(experiment: Experiment, bill: _Bill) -> None:
    """The passes of an experiment's rounds and of its evaluations."""
    from fedsim.data.federation import load_federation

    clients, data = experiment.clients, experiment.data
    federation = load_federation(data.dataset.settings, data.partition.settings, clients.count, experiment.seed)
    drawn = (clients.per_round or clients.count) / clients.count
    for client, share in enumerate(federation.shares):
        batch = min(clients.training(client).batch_size, len(share))
        steps = experiment.rounds * drawn * _steps(experiment, client, len(share))
        bill.add(experiment, batch, TRAINING_STEP * steps)
    every = experiment.server.evaluate_every
    if every:
        times = experiment.rounds // every + 1
        batch = clients.batch_size
        bill.add(experiment, batch, EVALUATION * times * len(federation.data.test) / batch)


def _steps(experiment: Experiment, client: int, examples: int) -> int:
    """Of a client's local training in a round."""
    training = experiment.clients.training(client)
    if experiment.clients.algorithm == "fedsgd":
        return 1
    return training.local_steps or training.local_epochs * math.ceil(examples / training.batch_size)


def _attack(experiment: Experiment, entry: AdversaryEntry, bill: _Bill) -> None:
    """The passes of an adversary's iterations over all rounds and targets."""
    from fedsim.data.federation import load_federation

    clients, data, plugin = experiment.clients, experiment.data, entry.plugin.settings
    if not hasattr(plugin, "iterations"):
        return
    federation = load_federation(data.dataset.settings, data.partition.settings, clients.count, experiment.seed)
    steps = plugin.iterations * getattr(plugin, "restarts", 1) * len(entry.rounds)
    for client in entry.targets:
        examples = len(federation.shares[client])
        unrolled = _steps(experiment, client, examples) if getattr(plugin, "local_steps", "") == "unrolled" else 1
        batch = min(clients.training(client).batch_size, examples)
        bill.add(experiment, batch, ATTACK_STEP * steps * unrolled)


def _measure(experiment: Experiment, images: int, budget: float) -> float:
    """Seconds of a forward and backward pass, the fastest of as many as fit into the budget, and one at least."""
    import torch
    from torch.nn import functional

    from fedsim.data.federation import load_data
    from fedsim.devices import choose_device
    from fedsim.models.initial import initial_model

    if experiment.runtime.threads:
        torch.set_num_threads(experiment.runtime.threads)
    data, device = load_data(experiment.data.dataset.settings), choose_device(experiment.runtime.device)
    model = initial_model(experiment, data).to(device)
    batch = data.train.batch([place % len(data.train) for place in range(images)])
    inputs, labels = data.normalisation(batch.images).to(device), batch.labels.to(device)
    best, began = math.inf, time.perf_counter()
    while True:
        start = time.perf_counter()
        functional.cross_entropy(model(inputs), labels).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
        spent = time.perf_counter() - began
        if spent + best > budget:
            return best
