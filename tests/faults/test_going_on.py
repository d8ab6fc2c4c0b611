"""What a run goes on from is looked at, not counted; and nothing is removed of one that has begun."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from crashing import Silent, begun, experiments, hashes, resumed
from faulty import Tally

from fedsim.cli import main
from fedsim.commands.run import execute
from fedsim.errors import InputError
from fedsim.runs import RunFolder, append_round

PLAN = experiments()["private"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("whole") / "run"
    assert begun(PLAN, path).code == 0
    return hashes(path)


@pytest.mark.parametrize("how", ["damaged", "lost", "other"])
def test_lines_of_attacks_that_do_not_fit_are_written_anew(
    how: str, whole: dict[str, str], tmp_path: Path, tally: Tally
) -> None:
    tally("truncated or flipped checkpoint or capture")
    path = tmp_path / "run"
    assert begun(PLAN, path, "attack.line:3").code == -signal.SIGKILL
    first, *rest = (path / "attacks.jsonl").read_text().splitlines(keepends=True)
    change = {"damaged": first[:20] + "\n", "lost": "", "other": first.replace('"job": "', '"job": "0')}[how]
    (path / "attacks.jsonl").write_text(change + "".join(rest))
    assert resumed(path).code == 0
    assert hashes(path) == whole
    assert any("anew" in text for text in json.loads((path / "manifest.json").read_text())["warnings"])


def test_lines_that_fit_are_kept(whole: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert begun(PLAN, path, "attack.line:3").code == -signal.SIGKILL
    before = (path / "attacks.jsonl").read_bytes()
    timings = (path / "timings.jsonl").read_bytes()
    assert resumed(path).code == 0
    assert (path / "attacks.jsonl").read_bytes().startswith(before)
    assert (path / "timings.jsonl").read_bytes().startswith(timings)
    assert hashes(path) == whole


def test_another_adversary_waits_until_the_run_has_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: dict[str, str]
) -> None:
    path = tmp_path / "run"
    assert begun(PLAN, path, "attack.found:1").code == -signal.SIGKILL
    assert main(["attack", str(path), "--adversary", "dlg", "--set", "iterations=5"]) == 2
    assert "has not ended (running); `fedsim resume" in capsys.readouterr().err
    assert resumed(path).code == 0
    assert hashes(path) == whole


def test_truth_that_was_lost_is_derived_again(whole: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert begun(PLAN, path, "attack.found:1").code == -signal.SIGKILL
    # As where the folder was moved, and what was apart from it stayed behind.
    for private in tmp_path.glob(".fedsim-truth-*"):
        for file in private.rglob("*.safetensors"):
            file.unlink()
    assert resumed(path).code == 0
    assert hashes(path) == whole


def test_bad_input_that_shows_late_leaves_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(experiment: Any, folder: RunFolder, screen: Any, **how: Any) -> None:
        from fedsim.runs import RoundRecord

        append_round(folder, RoundRecord(0))
        raise InputError("a file is gone")

    monkeypatch.setattr("fedsim.simulation.simulate", late)
    with pytest.raises(InputError, match="a file is gone"):
        execute(PLAN, RunFolder.create(tmp_path / "run"), Silent())
    assert (tmp_path / "run" / "rounds.jsonl").exists()
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"


def test_a_run_that_was_killed_after_its_last_word_gets_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    assert begun(PLAN, path).code == 0  # forks write no page
    assert not (path / "report.html").exists()
    assert main(["resume", str(path)]) == 0
    assert (path / "report.html").exists()
    assert main(["resume", str(path)]) == 0
    assert "nothing to go on with" in capsys.readouterr().out
