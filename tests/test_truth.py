"""The truth is out of a run's folder while attacks run, comes back however they end, and is found after a crash."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
from pathlib import Path

import pytest
from asking import ask

from fedsim import truth
from fedsim.errors import FedsimError
from fedsim.runs import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path / "runs" / "one-1")
    (made.path / "experiment.toml").write_text("")
    (made.truth / "c0-r1.safetensors").write_bytes(b"private")
    return made


@pytest.fixture
def said() -> list[str]:
    return []


def private(folder: RunFolder) -> list[Path]:
    return sorted(folder.path.parent.glob(".fedsim-truth-*"))


def crashed(folder: RunFolder, name: str = "0") -> Path:
    """What a killed process leaves."""
    left = folder.path.parent / f".fedsim-truth-{name}"
    left.mkdir(mode=0o700)
    (left / "whose.json").write_text(json.dumps({"run": folder.path.name}))
    folder.truth.rename(left / "truth")
    return left


def test_it_is_elsewhere_meanwhile_and_back_afterwards(folder: RunFolder, said: list[str]) -> None:
    with truth.apart(folder, said.append) as place:
        assert not folder.truth.exists()
        assert (place / "c0-r1.safetensors").read_bytes() == b"private"
        assert not place.is_relative_to(folder.path)
        assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
        assert len(place.parent.name) > 40, "nobody guesses it"
        first = place
    assert (folder.truth / "c0-r1.safetensors").read_bytes() == b"private"
    assert (private(folder), said) == ([], [])
    with truth.apart(folder, said.append) as place:
        assert place != first


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_it_is_back_after_whatever_ends_the_attacks(
    folder: RunFolder, said: list[str], error: type[BaseException]
) -> None:
    with pytest.raises(error), truth.apart(folder, said.append):
        raise error
    assert (folder.truth / "c0-r1.safetensors").is_file()
    assert private(folder) == []


def test_what_a_killed_process_left_is_found_by_the_next(folder: RunFolder, said: list[str]) -> None:
    crashed(folder)
    with truth.apart(folder, said.append) as place:
        assert (place / "c0-r1.safetensors").is_file()
    assert (folder.truth / "c0-r1.safetensors").is_file()
    assert private(folder) == []
    assert said == [f"the truth of {folder.path} was still apart, as a killed process had left it; it is back"]


def test_a_report_finds_it_too_and_says_so(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    crashed(folder)
    answer = ask(capsys, "report", str(folder.path))
    assert (answer.code, answer.problems) == (
        0,
        [f"warning: the truth of {folder.path} was still apart, as a killed process had left it; it is back"],
    )
    assert (folder.truth / "c0-r1.safetensors").is_file()


def test_that_of_other_runs_is_left_alone(folder: RunFolder, said: list[str]) -> None:
    other = RunFolder.create(folder.path.parent / "one-2")
    left = crashed(other)
    nobodys = folder.path.parent / ".fedsim-truth-1"
    nobodys.mkdir()
    assert truth.recover(folder, said.append)
    assert (left / "truth").is_dir() and nobodys.is_dir()
    assert said == []


def test_what_a_run_of_the_same_name_left_does_not_replace_the_truth_of_this_one(
    folder: RunFolder, said: list[str]
) -> None:
    """A sweep clears a cell that was broken off and runs it again in the same place."""
    crashed(folder)
    folder.truth.mkdir()
    (folder.truth / "c0-r1.safetensors").write_bytes(b"new")
    with truth.apart(folder, said.append) as place:
        assert (place / "c0-r1.safetensors").read_bytes() == b"new"
    assert (folder.truth / "c0-r1.safetensors").read_bytes() == b"new"
    assert private(folder) == []


def test_while_one_process_attacks_a_run_no_other_does(folder: RunFolder, said: list[str]) -> None:
    with truth.apart(folder, said.append) as place:
        with (
            pytest.raises(FedsimError, match="another attack on this run is at work"),
            truth.apart(folder, said.append),
        ):
            pass
        assert not truth.recover(folder, said.append), "nor does a report bring back what is in use"
        assert place.is_dir() and not folder.truth.exists()
    assert folder.truth.is_dir()


def test_where_nothing_can_be_written_beside_the_run_it_is_hidden_in_it(
    folder: RunFolder, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # By a stand-in, because root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder.path.parent)
    with truth.apart(folder, said.append) as place:
        assert not folder.truth.exists()
        assert place.parent.parent == folder.path
    assert folder.truth.is_dir()
    left = folder.path / ".fedsim-truth-2"
    left.mkdir()
    (left / "whose.json").write_text(json.dumps({"run": folder.path.name}))
    folder.truth.rename(left / "truth")
    assert truth.recover(folder, said.append) and folder.truth.is_dir() and len(said) == 1


def test_a_run_without_any_is_no_fault(folder: RunFolder, said: list[str]) -> None:
    (folder.truth / "c0-r1.safetensors").unlink()
    folder.truth.rmdir()
    with truth.apart(folder, said.append) as place:
        assert place == folder.truth
    assert private(folder) == []


def test_a_look_at_its_lock_by_another_run_does_not_leave_it_unlocked(
    folder: RunFolder, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder.path.parent / ".fedsim-truth-here"
    place.mkdir()
    (place / "whose.json").touch()
    monkeypatch.setattr(truth, "_private_folder", lambda run: place)
    with (place / "whose.json").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        threading.Timer(0.2, fcntl.flock, (other, fcntl.LOCK_UN)).start()
        with (
            truth.apart(folder, said.append),
            (place / "whose.json").open() as later,
            pytest.raises(BlockingIOError),
        ):
            fcntl.flock(later, fcntl.LOCK_EX | fcntl.LOCK_NB)
