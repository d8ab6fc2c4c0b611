"""SIGTERM and Ctrl-C: a run ends within seconds, leaves no process behind, and goes on to the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from crashing import begun, child_of, commanded, hashes, lines, made, table, until, waited
from faulty import WHOLE, Tally

from fedsim.experiment_file import as_toml

CONTENT = table(
    rounds=12,
    save_rounds=[12],
    model={"name": "mlp", "hidden": [8]},
    clients={"count": 4, "per_round": 3, "local_steps": 2, "batch_size": 8},
    server={"strategy": "fedadam"},
    adversaries=[{"name": "dlg", "vantage": "link", "targets": "all", "rounds": "all", "iterations": 4}],
    runtime={"threads": 1},
)
LONG = made("long", CONTENT)

MARK = "FEDSIM_TEST_OF_SIGNALS"
"""An environment variable that all of a run's processes have from it."""

SECONDS = 10.0
"""How long a run may take to end."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What comes of it when nobody disturbs it."""
    path = tmp_path_factory.mktemp("signals") / "run"
    assert begun(LONG, path).code == 0
    return hashes(path)


def processes(first: int, mark: str) -> list[int]:
    """All that are alive and belong to the session of the first, or have the mark in their environment."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            if not place.name.isdigit():
                continue
            state, _, _, session, *_ = (place / "stat").read_text().rpartition(")")[2].split()
            ours = int(session) == first or f"{MARK}={mark}".encode() in (place / "environ").read_bytes()
            found += [int(place.name)] if ours and state not in "ZX" else []
        except OSError:
            continue
    return found


def command(arguments: list[str], out: Path, mark: str) -> int:
    """Begin `fedsim` with these arguments, in a session of its own."""
    with out.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "fedsim", *arguments],
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, MARK: mark},
        ).pid  # fmt: skip


def fork(arguments: list[str], out: Path, mark: str) -> int:
    """The same without what it takes to import everything."""

    def action() -> int:
        os.setsid()
        os.environ[MARK] = mark
        os.dup2(2, 1)
        from fedsim.cli import main

        return main(arguments)

    return child_of(action, str(out))


CASES: dict[str, tuple[signal.Signals, str, list[str], dict[str, Any]]] = {
    "SIGTERM in a round": (signal.SIGTERM, "rounds.jsonl", [], {"isolation": "none"}),
    "Ctrl-C in a round": (signal.SIGINT, "rounds.jsonl", [], {}),
    "SIGTERM in an attack": (signal.SIGTERM, "attacks.jsonl", [], {}),
    "Ctrl-C in an attack": (signal.SIGINT, "attacks.jsonl", [], {}),
    "SIGTERM in a round on Ray": (signal.SIGTERM, "rounds.jsonl", ["--ray", "local"], {"workers": 1}),
    "Ctrl-C in a round on Ray": (signal.SIGINT, "rounds.jsonl", ["--ray", "local"], {"workers": 1}),
    "SIGTERM in an attack on Ray": (signal.SIGTERM, "attacks.jsonl", ["--ray", "local"], {"workers": 1}),
    "Ctrl-C beside attacks on Ray": (
        signal.SIGINT, "rounds.jsonl", ["--ray", "local"], {"workers": 1, "attacks": "during"},
    ),
}  # fmt: skip
"""By what is done: the signal, the file that has some lines then, arguments of the command, its runtime."""

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.mark.parametrize("case", CASES if WHOLE else ["SIGTERM in a round", "Ctrl-C in an attack"])
def test_a_run_is_ended(case: str, whole: dict[str, str], tmp_path: Path, tally: Tally) -> None:
    """Ctrl-C comes to all of its processes, SIGTERM to the first."""
    number, file, arguments, runtime = CASES[case]
    if arguments:
        pytest.importorskip("ray")
    tally("SIGTERM" if number == signal.SIGTERM else "Ctrl-C")
    experiment, run, out, mark = tmp_path / "long.toml", tmp_path / "run", tmp_path / "out.txt", uuid.uuid4().hex
    if arguments:  # `--ray` says the rest; a file that asks for workers has to say where
        runtime = {**runtime, "grid": "ray"}
    experiment.write_text(as_toml(made("long", {**CONTENT, "runtime": {"threads": 1, **runtime}})))
    begin = command if WHOLE or number == signal.SIGINT else fork
    first = begin(["run", str(experiment), "--out", str(run), *arguments], out, mark)
    status = 0
    try:
        until(lambda: lines(run / file) >= 3 or os.waitid(os.P_PID, first, os.WEXITED | os.WNOHANG | os.WNOWAIT))
        assert lines(run / file) >= 3, out.read_text()
        assert processes(first, mark)
        began = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(first, number)
        else:
            os.kill(first, number)
        status = waited(first)[1]
        took = time.monotonic() - began
        until(lambda: not processes(first, mark), 10)
    finally:
        for left in processes(first, mark):
            os.kill(left, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    said = out.read_text()
    assert code == CODES[number], said
    assert took < SECONDS, took
    assert f"fedsim resume {run}" in said and "Traceback" not in said
    assert json.loads((run / "manifest.json").read_text())["status"] == "interrupted"
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".fedsim-truth")]

    ended = commanded(tmp_path, "resume", str(run))
    assert ended.code == 0, ended.said
    assert hashes(run) == whole
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "done" and not [text for text in manifest["warnings"] if "anew" in text]
