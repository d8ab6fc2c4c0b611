"""Runs in processes that are killed: forks of the test's own, so that torch is imported once."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim import failpoints
from fedsim.adversaries import threat
from fedsim.experiment import Experiment
from fedsim.experiment_file import from_table, read
from fedsim.runs import RunFolder

LONGEST = 120.0
"""Seconds after which a run hangs."""


class Silent:
    """A screen that nobody looks at."""

    def rounds(self, *facts: object) -> None: ...
    def attack(self, *facts: object) -> None: ...
    def warn(self, text: str) -> None: ...


@dataclass(frozen=True)
class Ended:
    """How a process ended. code: negative for a signal. seconds: how long it took."""

    code: int
    seconds: float


def forked(action: Callable[[], int], kill_after: float | None = None, with_signal: int = signal.SIGKILL) -> Ended:
    """Run something in a fork of this process. kill_after: seconds after which it gets a signal."""
    began = time.monotonic()
    child = os.fork()
    if not child:
        code = 70
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            code = action()
        except SystemExit as stop:
            code = int(stop.code or 0)
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        passed = time.monotonic() - began
        if done:
            return Ended(os.waitstatus_to_exitcode(status), passed)
        if kill_after is not None and passed >= kill_after:
            os.kill(child, with_signal)
            kill_after = None
        if passed > LONGEST:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("the run hangs")
        time.sleep(0.002)


def begun(experiment: Experiment, path: Path, failpoint: str | None = None, **how: Any) -> Ended:
    """A new run, which may be killed at a failpoint, `name:count`."""

    def action() -> int:
        from fedsim.commands.run import execute

        if failpoint is not None:
            os.environ[failpoints.VARIABLE] = failpoint
        return execute(experiment, RunFolder.create(path), Silent())

    return forked(action, **how)


def resumed(path: Path, failpoint: str | None = None, **how: Any) -> Ended:
    """The same as `fedsim resume`."""

    def action() -> int:
        from fedsim.commands.run import execute

        if failpoint is not None:
            os.environ[failpoints.VARIABLE] = failpoint
        return execute(read(str(path / "experiment.toml")), RunFolder(path), Silent(), resume=True)

    return forked(action, **how)


def hashes(path: Path) -> dict[str, str]:
    """SHA-256 of what a run comes to: final weights, lines of rounds and attacks, and what was captured."""
    files = [path / "rounds.jsonl", path / "attacks.jsonl", *path.glob("checkpoints/*"), *path.glob("jobs/*")]
    files += [*path.glob("captures/*"), *path.glob("truth/*"), *path.glob("derived.jsonl")]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def experiments() -> dict[str, Experiment]:
    """Runs with much to remember: a strategy's moments, defenses with memory, own statistics, ledgers, derivations."""
    common: dict[str, Any] = {
        "seed": 5,
        "rounds": 4,
        "save_rounds": [4],
        "data": {"name": "digits"},
        "scores": {"lpips": "off"},
        "runtime": {"threads": 1, "isolation": "none"},
    }
    feedback = {"name": "random_sparsification", "ratio": 0.5, "rescale": False, "error_feedback": True}
    quick = {"name": "dlg", "vantage": "link", "targets": [0, 1, 2], "rounds": "all", "iterations": 3}
    stateful = {
        "model": {"name": "tiny_batchnorm"},
        "clients": {
            "count": 6, "per_round": 4, "local_steps": 2, "batch_size": 4, "batchnorm": "local", "defenses": [feedback],
        },
        "server": {"strategy": "fedadam"},
        "adversaries": [{**quick, "batchnorm": "proxy", "knows": ["running_statistics"]}],
    }  # fmt: skip
    private = {
        "model": {"name": "mlp", "hidden": [8]},
        "clients": {
            "count": 4, "per_round": 3, "local_steps": 1, "batch_size": 8,
            "defenses": [{"name": "dp_sgd", "noise_multiplier": 1.0}],
        },
        "server": {"strategy": "fedavgm"},
        "adversaries": [{**quick, "knows": ["labels"]}],
    }  # fmt: skip
    summed = {
        "model": {"name": "mlp", "hidden": [8]},
        "clients": {"count": 5, "algorithm": "fedsgd", "batch_size": 2, "dropout": 0.1},
        "server": {"secure_aggregation": {"name": "secagg+", "min_survivors": 3}, "learning_rate": 0.1},
        "adversaries": [
            {
                "name": "dlg", "id": "colluding", "vantage": "server", "targets": [0], "rounds": [1, 2, 3, 4],
                "colluders": [1, 2, 3, 4], "derive": "collusion", "iterations": 3,
            },
        ],
    }  # fmt: skip
    parts = {"stateful": stateful, "private": private, "summed": summed}
    return {name: from_table({**common, **part}, name, [threat.check]) for name, part in parts.items()}
