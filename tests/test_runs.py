"""The folder of a run: files that are whole or not there, lines that survive a crash, and places that are taken."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from fedsim.errors import InputError
from fedsim.runs import (
    Dropout,
    RoundRecord,
    RunFolder,
    append_line,
    check_new,
    finite,
    new_path,
    read_lines,
    write_whole,
)

# --- whole files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["text, also é", b"\x00bytes", "", b""])
def test_a_file_is_written_as_it_is(content: str | bytes, tmp_path: Path) -> None:
    write_whole(tmp_path / "a", content)
    expected = content.encode() if isinstance(content, str) else content
    assert (tmp_path / "a").read_bytes() == expected
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_file_is_replaced_and_may_be_read_by_others(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "old and longer")
    write_whole(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    failing: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "a", "old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[failing], fail)
    with pytest.raises(type(error)):
        write_whole(tmp_path / "a", "new")
    monkeypatch.undo()
    assert (tmp_path / "a").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_the_content_is_on_the_disk_before_the_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, replace = os.fsync, Path.replace

    def note_sync(handle: int) -> None:
        order.append("sync")
        sync(handle)

    def note_replace(path: Path, to: Path) -> Path:
        order.append("replace")
        return replace(path, to)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_whole(tmp_path / "a", "new")
    assert order[:2] == ["sync", "replace"]


def test_a_text_that_cannot_be_encoded_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "a", "\ud800")
    assert list(tmp_path.iterdir()) == []


# --- lines ---------------------------------------------------------------------------------------------------------


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    lines = [{"round": i, "words": 'é "\n\\ \u2028 x', "list": [1, None, True]} for i in range(3)]
    for line in lines:
        append_line(tmp_path / "a.jsonl", line)
    assert read_lines(tmp_path / "a.jsonl") == lines
    assert len((tmp_path / "a.jsonl").read_text().split("\n")) == 4


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "a.jsonl") == []


def test_a_tail_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines: list[dict[str, object]] = [{"round": 1}, {"round": 2, "x": "é", "y": [1.5, {"z": None}]}]
    for line in lines:
        append_line(file, line)
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    for kept in range(first, len(whole) - 1):
        file.write_bytes(whole[:kept])
        assert read_lines(file) == lines[:1], whole[:kept]
    file.write_bytes(whole[:-1])
    assert read_lines(file) == lines


@pytest.mark.parametrize(
    "tail", [b"\x00" * 100, b"\xff" * 100, b'{"round": 2, "x": "\xc3'], ids=["zeros", "ones", "half a letter"]
)
def test_a_tail_that_is_no_text_is_left_out(tail: bytes, tmp_path: Path) -> None:
    """What some file systems leave after a power cut."""
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"round": 1}\n' + tail)
    assert read_lines(file) == [{"round": 1}]


def test_a_line_after_a_tail_that_was_cut_off_is_not_lost(tmp_path: Path) -> None:
    """A run that goes on, or `fedsim attack` on a run that broke off, appends to such a file."""
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"round": 1}\n{"round": 2, "cli')
    append_line(file, {"round": 3})
    append_line(file, {"round": 4})
    found = [line["round"] for line in read_lines(file)]
    assert found == [1, 3, 4]


def test_a_line_that_fails_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        append_line(tmp_path / "a.jsonl", {"x": object()})
    assert read_lines(tmp_path / "a.jsonl") == []


def test_a_line_has_null_for_what_json_has_no_number_for(tmp_path: Path) -> None:
    append_line(tmp_path / "a.jsonl", {"a": math.nan, "b": [math.inf, 1.0], "c": {"d": -math.inf}, "e": (math.nan,)})
    text = (tmp_path / "a.jsonl").read_text()
    assert json.loads(text, parse_constant=lambda word: pytest.fail(word)) == {
        "a": None,
        "b": [None, 1.0],
        "c": {"d": None},
        "e": [None],
    }


def test_finite_leaves_the_rest_as_it_is() -> None:
    data = {"a": 1, "b": "nan", "c": True, "d": None, "e": [1.5, {"f": ()}]}
    assert finite(data) == {"a": 1, "b": "nan", "c": True, "d": None, "e": [1.5, {"f": []}]}


# --- places --------------------------------------------------------------------------------------------------------


def test_the_first_free_number_is_taken(tmp_path: Path) -> None:
    assert new_path(tmp_path, "a") == tmp_path / "a-1"
    (tmp_path / "a-1").mkdir()
    (tmp_path / "a-2").write_text("a file is in the way as well")
    (tmp_path / "a-4").mkdir()
    (tmp_path / "ab-3").mkdir()
    assert new_path(tmp_path, "a") == tmp_path / "a-3"
    assert not (tmp_path / "a-3").exists()


def test_the_parent_need_not_be_there(tmp_path: Path) -> None:
    assert new_path(tmp_path / "runs", "a") == tmp_path / "runs" / "a-1"
    check_new(tmp_path / "runs" / "a-1")


def test_a_new_or_empty_folder_will_do(tmp_path: Path) -> None:
    check_new(tmp_path / "a" / "b" / "c")
    (tmp_path / "empty").mkdir()
    check_new(tmp_path / "empty")
    assert [file.name for file in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("content", ["file", ".hidden"])
def test_a_folder_with_anything_in_it_will_not_do(content: str, tmp_path: Path) -> None:
    (tmp_path / content).write_text("")
    with pytest.raises(InputError, match=r"^--out .*: exists and is not empty; "):
        check_new(tmp_path)
    with pytest.raises(InputError, match="not empty"):
        RunFolder.create(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [content]


def test_a_file_will_not_do(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        check_new(tmp_path / "a")


def test_a_place_below_a_file_will_not_do(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(InputError, match=r"^--out "):
        check_new(tmp_path / "a" / "b" / "c")


def test_a_folder_that_cannot_be_written_to_will_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By a stand-in, because root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(InputError, match="cannot be written to"):
        check_new(tmp_path / "a" / "b")


def test_a_run_folder_is_made_with_its_parts(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "x" / "run-1")
    assert {path.name for path in folder.path.iterdir()} == {"captures", "jobs", "truth", "reconstructions"}
    assert folder.rounds == tmp_path / "x" / "run-1" / "rounds.jsonl"
    assert folder.experiment.name == "experiment.toml"
    RunFolder.create(tmp_path / "x" / "run-1")  # killed before it had begun: nothing is in it
    (folder.captures / "something").touch()
    with pytest.raises(InputError, match="not empty"):
        RunFolder.create(tmp_path / "x" / "run-1")


def test_a_run_folder_is_opened_if_it_is_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not a run folder"):
        RunFolder.open(tmp_path)
    (tmp_path / "experiment.toml").write_text("")
    assert RunFolder.open(tmp_path) == RunFolder(tmp_path)


# --- a round -------------------------------------------------------------------------------------------------------


def test_a_round_as_a_line_and_in_words(tmp_path: Path) -> None:
    record = RoundRecord(3, (0, 2), (Dropout(1, "crashed"),), 0.51234, 0.25, 0.875, 1.5)
    append_line(tmp_path / "rounds.jsonl", record.as_json())
    assert read_lines(tmp_path / "rounds.jsonl") == [
        {
            "round": 3,
            "clients": [0, 2],
            "dropouts": [{"client": 1, "reason": "crashed"}],
            "train_loss": 0.51234,
            "test_loss": 0.25,
            "test_accuracy": 0.875,
            "seconds": 1.5,
            "epsilon": None,
        }
    ]
    words = record.line()
    for word in ("round 3", "0.512", "0.250", "87.5%", "1 dropped out"):
        assert word in words
    assert "skipped" not in words


def test_what_privacy_cost_stands_in_the_line(tmp_path: Path) -> None:
    record = RoundRecord(2, epsilon=1.234, delta=1e-5, epsilons={0: 1.0, 3: 1.234})
    append_line(tmp_path / "rounds.jsonl", record.as_json())
    (line,) = read_lines(tmp_path / "rounds.jsonl")
    assert (line["epsilon"], line["delta"], line["epsilons"]) == (1.234, 1e-5, {"0": 1.0, "3": 1.234})
    assert record.line() == "round 2, epsilon 1.23 at delta 1e-05"


def test_no_noise_is_written_as_no_bound(tmp_path: Path) -> None:
    record = RoundRecord(2, epsilon=float("inf"), delta=1e-5, epsilons={0: float("inf")})
    append_line(tmp_path / "rounds.jsonl", record.as_json())
    (line,) = read_lines(tmp_path / "rounds.jsonl")
    assert (line["epsilon"], line["epsilons"]) == (None, {"0": None})
    assert "epsilon inf" in record.line()


def test_a_round_that_was_skipped_says_why() -> None:
    record = RoundRecord(1, skipped="too few updates")
    assert record.as_json()["skipped"] == "too few updates"
    assert record.line() == "round 1, skipped: too few updates"
