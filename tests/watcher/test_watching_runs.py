"""Looking on: what a growing run folder shows, and when it is said to be broken off."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import IO, Any

import pytest
from rich.console import Console

from fedsim.commands import report, watch
from fedsim.errors import InputError
from fedsim.experiment import Experiment
from fedsim.experiment_file import as_toml
from fedsim.runs import Dropout, RoundRecord, RunFolder, append_attack, append_round, cut
from fedsim.watcher import words
from fedsim.watcher.runs import BROKEN, RunSeen
from fedsim.watcher.sweeps import SweepSeen
from fedsim.watcher.table import picture
from fedsim.watcher.tail import Tail


class Writer:
    """Does what a run does to its folder."""

    def __init__(self, path: Path, experiment: Experiment) -> None:
        self.folder = RunFolder.create(path)
        self.folder.experiment.write_text(as_toml(experiment))
        self.lock: IO[str] = (path / ".lock").open("w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.say("running")

    def say(self, status: str, **facts: Any) -> None:
        self.folder.manifest.write_text(json.dumps({"status": status, **facts}))

    def round(self, number: int, **fields: Any) -> None:
        append_round(self.folder, RoundRecord(number, (0, 1), train_loss=1 / (number + 1), seconds=2.0, **fields))

    def attack(self, number: int, **fields: Any) -> None:
        line = {"adversary": "geiping", "client": 0, "clients": [0], "round": 1, "rounds": [1], "job": str(number)}
        append_attack(self.folder, {**line, "status": "done", "ssim": 0.5, "psnr": 20.0, "seconds": 3.0, **fields})

    def die(self) -> None:
        self.lock.close()


@pytest.fixture
def run(tmp_path: Path, small: Callable[..., Experiment]) -> Iterator[Writer]:
    entry = {"name": "geiping", "vantage": "server", "targets": [0], "rounds": [1], "knows": ["labels"]}
    writer = Writer(tmp_path / "run", small(rounds=10, adversaries=[entry]))
    yield writer
    writer.die()


def options(path: Path, **changed: Any) -> Namespace:
    return Namespace(**{"folders": [str(path)], "watch": True, "every": 0.01, "json": False, **changed})


class TestTail:
    def test_only_what_is_new_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "x.jsonl"
        tail = Tail(path)
        assert tail.new() == ([], False)
        path.write_bytes(b'{"a": 1}\n{"a": 2}\n')
        assert tail.new() == ([{"a": 1}, {"a": 2}], False)
        assert tail.new() == ([], False)
        with path.open("ab") as file:
            file.write(b'{"a": 3')
            file.flush()
            assert tail.new() == ([], False), "half a line waits"
            file.write(b'}\nnonsense\n[1]\n{"a": 4}\n{"a"')
        assert tail.new() == ([{"a": 3}, {"a": 4}], False)

    def test_a_file_that_was_cut_back_is_read_again(self, tmp_path: Path) -> None:
        path = tmp_path / "x.jsonl"
        path.write_bytes(b'{"a": 1}\n{"a": 2}\n')
        tail = Tail(path)
        tail.new()
        cut(path, 9)
        assert tail.new() == ([{"a": 1}], True)

    def test_a_long_file_is_not_read_twice(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "x.jsonl"
        path.write_bytes(b'{"a": 1}\n' * 200_000)
        tail = Tail(path)
        tail.new()
        start = time.perf_counter()
        for _ in range(100):
            tail.new()
        assert time.perf_counter() - start < 0.5


class TestRun:
    def test_what_it_shows(self, run: Writer) -> None:
        seen = RunSeen(run.folder.path)
        assert seen.refresh() and seen.status == "running" and seen.done is None
        run.round(0)
        run.round(1, test_accuracy=0.5, epsilon=2.0, dropouts=(Dropout(1, "left"),))
        assert seen.refresh() and not seen.refresh()
        assert seen.left == pytest.approx(9 * 2, abs=2), "as long as the rounds before took"
        run.attack(1)
        run.attack(2, status="failed", error="it broke", ssim=None)
        seen.refresh()
        assert words.line(seen).startswith(
            "run: running, round 1/10, about 20 s left, train loss 0.500, test accuracy 50"
        )
        assert words.line(seen).endswith(
            "epsilon 2.00, 1 dropout, 2 attacks done, 1 of them failed, last geiping on round 1: failed"
        )
        assert seen.warnings == ["adversary 'geiping' failed on round 1: it broke"]
        assert seen.recent[-1].seconds == 2.0 and seen.attacks[0].seconds == 3.0
        data = seen.as_json()
        assert (data["round"], data["attacks"], data["failed"], data["dropouts"]) == (1, 2, 1, 1)

    def test_a_run_that_goes_on_from_a_checkpoint_is_counted_once(self, run: Writer) -> None:
        run.round(0)
        size = run.folder.rounds.stat().st_size
        run.round(1, dropouts=(Dropout(1, "left"),))
        run.round(2)
        seen = RunSeen(run.folder.path)
        seen.refresh()
        cut(run.folder.rounds, size)
        seen.refresh()
        run.round(1, dropouts=(Dropout(1, "left"),))
        seen.refresh()
        assert [one.round for one in seen.recent] == [0, 1] and seen.dropouts == 1

    def test_the_time_that_attacks_will_take(self, run: Writer) -> None:
        for number in range(11):
            run.round(number)
        for number in range(4):
            (run.folder.jobs / f"{number}.json").write_text("{}")
        run.attack(0)
        seen = RunSeen(run.folder.path)
        seen.refresh()
        assert seen.left == pytest.approx(9, abs=2)
        assert "1 of 4 attacks done" in words.line(seen)

    def test_broken_off_is_who_holds_no_lock_any_more(self, run: Writer) -> None:
        seen = RunSeen(run.folder.path)
        for _ in range(5):
            seen.refresh()
        assert seen.status == "running" and not seen.over
        run.die()
        seen.refresh()
        assert seen.status == "running", "it might be just ending"
        assert seen.refresh() and seen.status == BROKEN and seen.over
        assert f"`fedsim resume {run.folder.path}`" in words.remedy(seen)

    def test_ended_between_two_looks_is_not_broken_off(self, run: Writer) -> None:
        seen = RunSeen(run.folder.path)
        seen.refresh()
        run.die()
        seen.refresh()
        run.say("done", exit=0)
        seen.refresh()
        assert seen.status == "done"

    def test_looking_does_not_touch_the_run(self, run: Writer) -> None:
        run.round(1)
        before = {path: path.stat().st_mtime_ns for path in run.folder.path.rglob("*")}
        seen = RunSeen(run.folder.path)
        for _ in range(3):
            seen.refresh()
            picture(seen, Console(file=StringIO()))
        assert {path: path.stat().st_mtime_ns for path in run.folder.path.rglob("*")} == before

    def test_of_many_rounds_only_the_last_are_kept(self, run: Writer) -> None:
        lines = "".join(json.dumps({"round": number, "clients": [0]}) + "\n" for number in range(5000))
        run.folder.rounds.write_text(lines)
        seen = RunSeen(run.folder.path)
        seen.refresh()
        assert seen.done == 4999 and len(seen.recent) < 100

    def test_the_table_is_no_taller_than_the_terminal(self, run: Writer) -> None:
        for number in range(60):
            run.round(number, dropouts=(Dropout(1, f"reason {number}"),), skipped="too few")
            run.attack(number, status="failed", error="[bold]broken[/]" * 30)
        seen = RunSeen(run.folder.path)
        seen.refresh()
        for height in (16, 24, 50):
            console = Console(file=StringIO(), width=100, height=height)
            console.print(picture(seen, console))
            shown = console.file.getvalue()  # type: ignore[attr-defined]
            assert len(shown.splitlines()) <= height
            assert "59" in shown and "broken" in shown and "earlier warnings" in shown


class TestCommand:
    def test_lines_until_it_ends_and_then_the_page(self, run: Writer, capsys: pytest.CaptureFixture[str]) -> None:
        def work() -> None:
            for number in range(11):
                run.round(number)
                time.sleep(0.03)
            run.say("done", exit=0, warnings=["look out"])
            run.die()

        worker = threading.Thread(target=work)
        worker.start()
        assert report.run(options(run.folder.path)) == 0
        worker.join()
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == f"report: {run.folder.path / 'report.html'}" and (run.folder.path / "report.html").is_file()
        assert lines[-2] == "warning: look out" and lines[-3].startswith("run: done, round 10/10")
        assert len(lines) == len(set(lines)) > 5

    def test_json(self, run: Writer, capsys: pytest.CaptureFixture[str]) -> None:
        run.round(1)
        run.say("failed", error="no room", exit=1)
        assert report.run(options(run.folder.path, json=True)) == 0
        first, last = map(json.loads, capsys.readouterr().out.splitlines())
        assert (first["event"], first["status"], first["error"], first["round"]) == ("watch", "failed", "no room", 1)
        assert last["event"] == "report"

    def test_broken_off(self, run: Writer, capsys: pytest.CaptureFixture[str]) -> None:
        run.round(1)
        run.die()
        assert report.run(options(run.folder.path)) == 1
        assert capsys.readouterr().out.splitlines()[-1].endswith(f"`fedsim resume {run.folder.path}` goes on with it")
        assert not (run.folder.path / "report.html").exists()

    def test_a_folder_with_nothing_but_a_lock_is_a_run_that_begins(self, run: Writer) -> None:
        run.folder.experiment.unlink()
        run.folder.manifest.unlink()
        run.die()
        assert report.run(options(run.folder.path)) == 1
        (run.folder.path / ".lock").unlink()
        with pytest.raises(InputError, match="not a run folder"):
            report.run(options(run.folder.path))

    def test_what_cannot_be_watched(self, run: Writer) -> None:
        for bad in (0, -1, float("nan"), float("inf")):
            with pytest.raises(InputError, match="--every"):
                report.run(options(run.folder.path, every=bad))
        with pytest.raises(InputError, match="one folder at a time"):
            watch.check(["a", "b"], 1)

    def test_ctrl_c_leaves_the_run_alone(self, run: Writer) -> None:
        run.round(1)
        looking = subprocess.Popen(
            [sys.executable, "-m", "fedsim", "report", str(run.folder.path), "--watch", "--every", "0.1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert looking.stdout is not None
        assert "round 1/10" in looking.stdout.readline()
        before = {path: path.stat().st_mtime_ns for path in run.folder.path.rglob("*")}
        looking.send_signal(signal.SIGINT)
        _, errors = looking.communicate(timeout=30)
        assert looking.returncode == 130 and "Traceback" not in errors
        assert {path: path.stat().st_mtime_ns for path in run.folder.path.rglob("*")} == before


class TestSweep:
    @pytest.fixture
    def sweep(self, tmp_path: Path, small: Callable[..., Experiment]) -> Iterator[Path]:
        path = tmp_path / "sweep"
        (path / "cells").mkdir(parents=True)
        cells = [{"folder": f"cells/{name}", "hash": name, "training": None} for name in "abcd"]
        (path / "sweep.json").write_text(json.dumps({"status": "running", "name": "s", "cells": cells}))
        with (path / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield path

    @staticmethod
    def cell(sweep: Path, name: str, status: str, experiment: Experiment, **facts: Any) -> RunFolder:
        folder = RunFolder(sweep / "cells" / name)
        folder.path.mkdir(exist_ok=True)
        folder.experiment.write_text(as_toml(experiment))
        folder.manifest.write_text(json.dumps({"status": status, "content_sha256": name, **facts}))
        return folder

    def test_what_it_shows(self, sweep: Path, small: Callable[..., Experiment]) -> None:
        experiment = small(rounds=10)
        seen = SweepSeen(sweep)
        assert seen.refresh() and seen.states == {"waiting": 4}
        self.cell(sweep, "a", "done", experiment)
        self.cell(sweep, "b", "failed", experiment, error="it broke")
        going = self.cell(sweep, "c", "running", experiment)
        append_round(going, RoundRecord(4))
        self.cell(sweep, "d", "done", experiment, content_sha256="of another content")
        assert seen.refresh()
        told = words.line(seen)
        assert told.startswith("sweep: running, 1/4 cells done, 1 failed, about ") and told.endswith("c at round 4/10")
        assert seen.failures == {"b": "it broke"} and seen.as_json()["waiting"] == 1
        console = Console(file=StringIO(), width=100, height=24)
        console.print(picture(seen, console))
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert "2/4" in shown and "4/10" in shown and "b: it broke" in shown
        assert not seen.refresh()

    def test_broken_off(self, sweep: Path, small: Callable[..., Experiment]) -> None:
        self.cell(sweep, "c", "running", small())
        seen = SweepSeen(sweep)
        seen.refresh()
        assert not seen.over
        (sweep / ".lock").unlink()
        (sweep / ".lock").touch()
        seen.refresh()
        seen.refresh()
        assert seen.status == BROKEN and "fedsim sweep" in words.remedy(seen)
        seen.refresh()
        assert seen.states == {"waiting": 4} and not seen.working
