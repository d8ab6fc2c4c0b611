"""Runs in processes that are killed: forks of the test's own, so that torch is imported once."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
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
    """How a process ended. code: negative for a signal. seconds: how long it took. said: on its error output, if that
    was kept.
    """

    code: int
    seconds: float
    said: str = ""


def child_of(action: Callable[[], int], errors: str = os.devnull) -> int:
    """Begin something in a fork of this process. errors: where its error output goes. Returns the process's number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = action()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def forked(action: Callable[[], int], kill_after: float | None = None, with_signal: int = signal.SIGKILL) -> Ended:
    """Run something in a fork of this process. kill_after: seconds after which it gets a signal."""
    began = time.monotonic()
    child = child_of(action)
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


def commanded(folder: Path, *arguments: str, before: Callable[[], object] = lambda: None) -> Ended:
    """A command of fedsim, in a fork, with what it says on its error output. folder: for a file of that. before: is
    done there first.
    """

    def action() -> int:
        from fedsim.cli import main

        before()
        return main(arguments)

    errors = folder / f"errors-{time.time_ns()}.txt"
    child, began = child_of(action, str(errors)), time.monotonic()
    code = os.waitstatus_to_exitcode(waited(child)[1])
    return Ended(code, time.monotonic() - began, errors.read_text())


def waited(child: int) -> tuple[int, int]:
    """`os.waitpid`, for no longer than a run may take."""
    end = time.monotonic() + LONGEST
    while not (found := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("the run hangs")
        time.sleep(0.002)
    return found


def until(happened: Callable[[], Any], seconds: float = LONGEST) -> Any:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not (value := happened()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
    return value


def lines(path: Path) -> int:
    """Of a file; 0 where there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def hashes(path: Path) -> dict[str, str]:
    """SHA-256 of what a run comes to: final weights, lines of rounds and attacks, and what was captured."""
    files = [path / "rounds.jsonl", path / "attacks.jsonl", *path.glob("checkpoints/*"), *path.glob("jobs/*")]
    files += [*path.glob("captures/*"), *path.glob("truth/*"), *path.glob("derived.jsonl")]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def table(**parts: Any) -> dict[str, Any]:
    """An experiment file's content, of some sections and what they have in common."""
    common: dict[str, Any] = {
        "seed": 5,
        "rounds": 4,
        "save_rounds": [4],
        "data": {"name": "digits"},
        "scores": {"lpips": "off"},
        "runtime": {"threads": 1, "isolation": "none"},
    }
    return {**common, **parts}


def made(name: str, content: dict[str, Any]) -> Experiment:
    """The experiment of such content."""
    return from_table(content, name, [threat.check])


def experiments() -> dict[str, Experiment]:
    """Runs with much to remember: a strategy's moments, defenses with memory, own statistics, ledgers, derivations."""
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
    return {name: made(name, table(**part)) for name, part in parts.items()}
