"""What a worker of a sweep does with one piece of work: an experiment run, or the cost of a defense measured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedsim.runs import RunFolder, write_whole
from fedsim.sweeps import timing
from fedsim.sweeps.runner import Order

if TYPE_CHECKING:
    from fedsim.experiment import Experiment


def do(order: Order, tell: Callable[..., None]) -> int:
    """The exit code that the piece of work would have had as a command of its own. Raises what ends it early."""
    if order.baseline is not None:
        _time(order, order.baseline)
        return 0
    from fedsim import report
    from fedsim.commands.run import execute
    from fedsim.sweeps.screens import Relay

    folder = RunFolder.create(order.folder)
    code = execute(order.experiment, folder, Relay(tell), order.facts)
    report.write(folder.path)
    return code


def _time(order: Order, baseline: Experiment) -> None:
    """Measure a client's round with its defenses against the same round of the baseline, into timing.json."""
    from fedsim.clients.workbench import workbench

    device = workbench(order.experiment).device
    clock: timing.Clock = _gpu_clock if device.type == "cuda" else time.process_time
    measured = timing.compare(
        _player(order.experiment), _player(baseline), min(order.experiment.rounds, baseline.rounds), clock
    )
    facts = {
        **order.facts,
        "ratio": measured.ratio,
        "own_seconds": measured.own,
        "baseline_seconds": measured.baseline,
        "device": str(device),
    }
    write_whole(order.folder, json.dumps(facts, indent=2) + "\n")


def _player(experiment: Experiment) -> timing.Round:
    """Client 0's part of a round, from the initial model each time."""
    import torch

    from fedsim import batchnorm
    from fedsim.clients.workbench import Memory, workbench

    if experiment.runtime.threads:
        torch.set_num_threads(experiment.runtime.threads)
    place = workbench(experiment)
    parameters = {name: value.detach().cpu().clone() for name, value in place.model.named_parameters()}
    buffers = {name: value.detach().cpu().clone() for name, value in batchnorm.statistics(place.model).items()}
    memory: Memory = {}

    def play(round_: int) -> None:
        nonlocal memory
        trained, _ = place.train(0, round_, parameters, buffers)
        _, kept = place.perturb(trained.update, 0, round_, parameters, memory)
        memory, _ = place.spend(0, kept)

    return play


def _gpu_clock() -> float:
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()
