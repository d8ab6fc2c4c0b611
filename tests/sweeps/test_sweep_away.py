"""Work that is done elsewhere: what travels there and back, and what is left behind."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import TEXT, manifest

from fedsim import manifest as manifests
from fedsim.errors import InputError
from fedsim.experiment import Experiment, Runtime
from fedsim.experiment_file import as_toml
from fedsim.experiment_file import read as read_experiment
from fedsim.runs import RunFolder
from fedsim.sweeps import away
from fedsim.sweeps.cells import expand
from fedsim.sweeps.file import parse
from fedsim.sweeps.runner import Order


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A trained model, beside the sweep."""
    path = tmp_path / "here" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def order(model: Path, tmp_path: Path) -> Order:
    """A cell that wants a cluster, and the second of several GPUs."""
    experiment = expand(parse(TEXT, "s.toml", "s")).cells[0].experiment
    runtime = Runtime(grid="ray", attacks="during", device="cuda:1", workers=3)
    experiment = replace(experiment, runtime=runtime, checkpoint=str(model))
    return Order("cell", experiment, tmp_path / "here" / "cell", {"at": {"batch": "1"}})


def carried_out(order: Order, work: Callable[..., Any], tmp_path: Path, **changes: Any) -> tuple[str, Any]:
    room = tmp_path / "there"
    room.mkdir()
    models = {path: Path(path).read_bytes() for path in away.models_of(order)}
    return away.carry_out(away.Parcel(order, **changes), models, work, lambda *words: None, room)


def run_of(order: Order) -> RunFolder:
    """As a run leaves it."""
    run = RunFolder.create(order.folder)
    run.experiment.write_text(as_toml(order.experiment))
    manifests.write(run, {"experiment_sha256": "of what was run", "status": "done", "command": " ".join(sys.argv)})
    return run


def test_it_is_run_there_as_one_process_with_the_model_that_came_along(order: Order, tmp_path: Path) -> None:
    seen: list[Order] = []
    told: list[tuple[str, str]] = []

    def work(sent: Order, tell: Callable[..., None]) -> int:
        seen.append(sent)
        told.append((Path(str(sent.experiment.checkpoint)).read_text(), str(Path.cwd())))
        return 3

    before = Path.cwd()
    assert carried_out(order, work, tmp_path, place=str(tmp_path)) == ("done", 3)
    (sent,) = seen
    runtime = sent.experiment.runtime
    assert (runtime.grid, runtime.attacks, runtime.device) == ("inline", "after", "cuda")
    assert sent.folder.is_relative_to(tmp_path / "there")
    assert Path(str(sent.experiment.checkpoint)).is_relative_to(tmp_path / "there")
    assert told == [("weights", str(tmp_path))]
    assert Path.cwd() == before


def test_the_run_tells_what_was_asked_for_and_not_where_it_was_run(order: Order, tmp_path: Path) -> None:
    def work(sent: Order, tell: Callable[..., None]) -> int:
        run_of(sent)
        return 0

    before = list(sys.argv)
    carried_out(order, work, tmp_path, command=("fedsim", "sweep", "mine"))
    made = RunFolder(tmp_path / "there" / "made")
    text = made.experiment.read_text()
    assert text == as_toml(order.experiment)
    # So `fedsim resume`, which compares them, is not put off, and the run can be read again.
    assert manifests.read(made)["experiment_sha256"] != "of what was run"
    assert manifests.read(made)["command"] == "fedsim sweep mine"
    assert sys.argv == before
    assert read_experiment(str(made.experiment)).runtime.workers == 3


def test_errors_name_what_the_sweep_knows(order: Order, model: Path, tmp_path: Path) -> None:
    def work(sent: Order, tell: Callable[..., None]) -> int:
        raise InputError(f"{sent.experiment.checkpoint}: is of another model; {sent.folder}")

    assert carried_out(order, work, tmp_path) == ("failed", f"{model}: is of another model; {order.folder}")


def test_an_error_of_the_work_is_its_result(order: Order, tmp_path: Path) -> None:
    def work(sent: Order, tell: Callable[..., None]) -> int:
        run_of(sent)
        raise ValueError("it broke")

    assert carried_out(order, work, tmp_path) == ("failed", "ValueError: it broke")
    assert manifest(tmp_path / "there" / "made")["status"] == "done"  # what there is comes back all the same


def test_another_version_there_is_refused(order: Order, tmp_path: Path) -> None:
    def work(sent: Order, tell: Callable[..., None]) -> int:
        raise AssertionError("it ran")

    word, reason = carried_out(order, work, tmp_path, version="9.9")
    assert word == "failed"
    assert "9.9" in reason


def test_a_folder_comes_back_whole_in_small_pieces(tmp_path: Path) -> None:
    made = tmp_path / "made"
    (made / "captures" / "deep").mkdir(parents=True)
    (made / "empty").mkdir()
    (made / "large").write_bytes(os.urandom(1000))
    (made / "none").write_bytes(b"")
    (made / "captures" / "deep" / "small").write_bytes(b"abc")
    pieces = list(away.packed(made, 300))
    assert len(pieces) == 5
    assert all(sum(len(content or b"") for _, content in piece) <= 300 for piece in pieces)

    target = tmp_path / "sweep" / "cells" / "one"
    target.mkdir(parents=True)
    (target / "before").write_text("of a run that was broken off")
    arrival = away.Arrival(target)
    for piece in pieces:
        assert not (target / "large").exists()
        arrival.add(piece)
    arrival.settle()
    assert contents(target) == contents(made)
    assert [one.name for one in target.parent.iterdir()] == ["one"]


def test_what_came_in_part_is_not_there(tmp_path: Path) -> None:
    target = tmp_path / "cells" / "one"
    away.Arrival(target).add([("", None), ("half", b"1")])  # and the sweep is killed
    assert not target.exists()
    arrival = away.Arrival(target)
    arrival.add([("", None), ("whole", b"2")])
    arrival.settle()
    arrival.drop()
    assert contents(tmp_path / "cells") == {"one": None, "one/whole": b"2"}


def test_a_single_file_travels_too_and_nothing_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"{}")
    target = tmp_path / "models" / "timing.json"
    arrival = away.Arrival(target)
    for piece in away.packed(tmp_path / "made"):
        arrival.add(piece)
    arrival.settle()
    assert target.read_bytes() == b"{}"
    assert list(away.packed(tmp_path / "missing")) == []
    away.Arrival(tmp_path / "missing").settle()
    assert not (tmp_path / "missing").exists()


def test_rooms_of_dead_processes_go_and_those_of_living_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / f"{away.PREFIX}left"
    left.mkdir()
    (left / "lock").touch()
    (left / "room").mkdir()
    foreign = tmp_path / f"{away.PREFIX}not-ours"
    foreign.mkdir()
    with away.temporary_room() as room, away.temporary_room() as other:
        assert not left.exists()
        assert room.is_dir()
        assert other.is_dir()
        with (room.parent / "lock").open() as lock, pytest.raises(OSError, match="unavailable"):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            away.clear_rooms_of("", 0.1)
        assert room.is_dir()
    assert list(tmp_path.iterdir()) == [foreign]


def test_an_interrupt_while_a_room_is_removed_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    remove, interrupted = shutil.rmtree, iter([True])

    def interrupt_once(path: Path, **options: Any) -> None:
        if next(interrupted, False):
            raise KeyboardInterrupt
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupt_once)
    with pytest.raises(KeyboardInterrupt), away.temporary_room() as room:
        (room / "something").touch()
    assert list(tmp_path.iterdir()) == []


def test_rooms_of_a_sweep_go_as_soon_as_its_processes_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = "import sys, time; from fedsim.sweeps import away\nwith away.temporary_room(sys.argv[1]) as room:\n"
    code += "    print(room, flush=True); time.sleep(60)"
    dying, living = (
        subprocess.Popen(
            [sys.executable, "-c", code, name],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        for name in ("one", "two")
    )
    try:
        assert dying.stdout
        assert living.stdout
        rooms = [Path(process.stdout.readline().strip()) for process in (dying, living)]  # type: ignore[union-attr]
        assert all(room.is_dir() for room in rooms)
        threading.Timer(0.3, dying.kill).start()
        away.clear_rooms_of("one", 30)
        assert [room.is_dir() for room in rooms] == [False, True]
    finally:
        for process in (dying, living):
            process.kill()
            process.communicate()


def contents(path: Path) -> dict[str, bytes | None]:
    return {
        one.relative_to(path).as_posix(): None if one.is_dir() else one.read_bytes() for one in sorted(path.rglob("*"))
    }


def test_models_of_an_order(order: Order, model: Path) -> None:
    bare: Experiment = replace(order.experiment, checkpoint=None)
    assert away.models_of(replace(order, experiment=bare)) == []
    assert away.models_of(replace(order, baseline=order.experiment)) == [str(model)]
