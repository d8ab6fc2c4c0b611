"""Two drivers on one run folder: the second is turned away, and the first does not notice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from crashing import begun, child_of, commanded, experiments, hashes, lines, until, waited
from faulty import Tally

from fedsim.experiment_file import as_toml

EXPERIMENT = experiments()["private"]


def test_a_second_driver_is_turned_away(tmp_path: Path, tally: Tally) -> None:
    """While the first one is in the midst of its rounds: by `resume`, by `run --resume`, and by a new `run`."""
    tally("two drivers on one run folder")
    file, run = tmp_path / "private.toml", tmp_path / "run"
    file.write_text(as_toml(EXPERIMENT))
    assert begun(EXPERIMENT, tmp_path / "undisturbed").code == 0

    def drive() -> int:
        from fedsim.cli import main

        return main(["run", str(file), "--out", str(run)])

    first = child_of(drive)
    try:
        until(lambda: lines(run / "rounds.jsonl") >= 2)
        os.kill(first, signal.SIGSTOP)
        there = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        for words, arguments in {
            "another `fedsim run` is at work in it": ("resume", str(run)),
            "is at work": ("run", str(file), "--out", str(run), "--resume"),
            "exists and is not empty": ("run", str(file), "--out", str(run)),
        }.items():
            second = commanded(tmp_path, *arguments)
            assert second.code == 2 and words in second.said, second
            assert len(second.said.splitlines()) == 1
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == there
    finally:
        os.kill(first, signal.SIGCONT)
        status = waited(first)[1]
    assert os.waitstatus_to_exitcode(status) == 0
    assert hashes(run) == hashes(tmp_path / "undisturbed")
