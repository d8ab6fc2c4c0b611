"""A disk that is full, a folder that cannot be written to: said in a sentence, and the run goes on from there later."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from crashing import Ended, begun, commanded, hashes, made, table
from faulty import WHOLE, Tally
from full_disk import FullDisk, no_administrator

from fedsim.experiment_file import as_toml

SMALL = made(
    "small",
    table(
        rounds=2,
        save_rounds=[2],
        model={"name": "mlp", "hidden": [8]},
        clients={
            "count": 3, "local_steps": 1, "batch_size": 4,
            "defenses": [{"name": "random_sparsification", "ratio": 0.5, "rescale": False, "error_feedback": True}],
        },
        server={"strategy": "fedavgm"},
        adversaries=[{"name": "dlg", "vantage": "link", "targets": [0], "rounds": [1, 2], "iterations": 2}],
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment file, and `whole`, what comes of it."""
    folder = tmp_path_factory.mktemp("disks")
    (folder / "small.toml").write_text(as_toml(SMALL))
    counted = folder / "count"

    def count() -> None:
        disk = FullDisk(folder / "whole", float("inf"))
        disk.install()
        # The process ends by `os._exit`: the number is written whenever it grows.
        one_more = disk.one_more
        disk.one_more = lambda: (one_more(), counted.write_text(str(disk.passed)))[0]  # type: ignore[method-assign]

    ended = commanded(folder, "run", str(folder / "small.toml"), "--out", str(folder / "whole"), before=count)
    assert ended.code == 0, ended.said
    return folder


def writes(folder: Path) -> int:
    return int((folder / "count").read_text())


def check_said(ended: Ended, *words: str) -> None:
    """Exit code 1, a sentence or two, no traceback."""
    assert ended.code == 1, (ended.code, ended.said)
    assert "Traceback" not in ended.said and len(ended.said.splitlines()) <= 2, ended.said
    assert any(word in ended.said for word in words), ended.said


def check_goes_on(folder: Path, run: Path) -> None:
    """There is room again: the same bits as if there always had been, and no checkpoint that was damaged."""
    ended = commanded(folder, "resume", str(run))
    assert ended.code == 0, ended.said
    assert hashes(run) == hashes(folder / "whole")
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert not [text for text in manifest["warnings"] if "damaged" in text or "anew" in text]


def check_full(folder: Path, run: Path, after: int) -> None:
    def fill() -> None:
        FullDisk(run, after).install()

    ended = commanded(folder, "run", str(folder / "small.toml"), "--out", str(run), before=fill)
    check_said(ended, "No space left on device")
    if not run.exists():  # nothing was begun, and the name is free
        return
    check_goes_on(folder, run)


def test_a_run_writes_often(place: Path) -> None:
    assert writes(place) > 50


@pytest.mark.parametrize("part", range(20) if WHOLE else [0])
def test_the_disk_is_full(part: int, place: Path, tmp_path: Path, tally: Tally) -> None:
    """At each write and each fsync that a run comes to, and from then on."""
    many = writes(place)
    which = range(part, many, 20) if WHOLE else (1, many // 6, 2 * many // 3)
    tally("disk full at a write", len(which))
    for after in which:
        check_full(place, tmp_path / f"run-{after}", after)


@pytest.mark.parametrize("limit", [100, 1000, 3000, 5000] if WHOLE else [3000])
def test_the_system_refuses_to_write(limit: int, place: Path, tmp_path: Path, tally: Tally) -> None:
    """A real error of a real file system: no file may be larger than that."""
    tally("disk full at a write")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    errors = tmp_path / "errors"
    errors.mkdir()
    run = tmp_path / "run"
    ended = commanded(errors, "run", str(place / "small.toml"), "--out", str(run), before=limited)
    check_said(ended, "File too large")
    if run.exists():
        check_goes_on(place, run)


def closed(run: Path) -> None:
    """Let nobody write into a run's folder, nor into those in it."""
    for one in [run, *run.rglob("*")]:
        one.chmod(0o555 if one.is_dir() else 0o444)


def opened(run: Path) -> None:
    for one in [run, *run.rglob("*")]:
        one.chmod(0o777 if one.is_dir() else 0o666)


@pytest.mark.parametrize("at", ["checkpoint.written:2", "attack.line:1"] if WHOLE else ["checkpoint.written:2"])
def test_a_folder_that_can_only_be_read(at: str, place: Path, tmp_path: Path, tally: Tally) -> None:
    """A run that was broken off, gone on with where that may not be."""
    tally("read-only folder")
    run = tmp_path / "run"
    assert begun(SMALL, run, at).code < 0
    before = {path: path.read_bytes() for path in run.glob("resume/**/*") if path.is_file()}
    assert before
    closed(run)
    check_refusal(commanded(tmp_path, "resume", str(run), before=no_administrator))
    assert {path: path.read_bytes() for path in run.glob("resume/**/*") if path.is_file()} == before
    opened(run)
    check_goes_on(place, run)


def check_refusal(ended: Ended) -> None:
    assert ended.code in (1, 2), (ended.code, ended.said)
    assert "Traceback" not in ended.said and len(ended.said.splitlines()) <= 2, ended.said
    assert "ermission denied" in ended.said or "cannot be written to" in ended.said, ended.said


def test_a_place_where_no_folder_can_be_made(place: Path, tmp_path: Path, tally: Tally) -> None:
    tally("read-only folder")
    parent = tmp_path / "parent"
    parent.mkdir()
    parent.chmod(0o555)
    (tmp_path / "small.toml").write_text(as_toml(SMALL))
    run = str(parent / "run")
    ended = commanded(tmp_path, "run", str(tmp_path / "small.toml"), "--out", run, before=no_administrator)
    check_refusal(ended)
    assert ended.code == 2 and not list(parent.iterdir())


def test_a_folder_that_is_closed_while_the_run_goes_on(place: Path, tmp_path: Path, tally: Tally) -> None:
    """From the second round's checkpoint on nothing can be made in it any more."""
    tally("read-only folder")
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(0o777)

    def close_later() -> None:
        no_administrator()
        from fedsim.states import store

        real: Callable[..., None] = store.Checkpoints.write

        def write(self: store.Checkpoints, round_: int, *more: object, **named: object) -> None:
            real(self, round_, *more, **named)
            if round_ == 1:
                closed(run)

        store.Checkpoints.write = write  # type: ignore[method-assign,assignment]

    (tmp_path / "small.toml").write_text(as_toml(SMALL))
    ended = commanded(tmp_path, "run", str(tmp_path / "small.toml"), "--out", str(run), before=close_later)
    check_said(ended, "ermission denied")
    opened(run)
    check_goes_on(place, run)
