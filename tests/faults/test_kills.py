"""Kill -9 of the driver, anywhere: what is resumed ends with the same bits as what was never broken off."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from crashing import Ended, begun, experiments, hashes, resumed
from faulty import WHOLE, Tally

from fedsim.failpoints import NAMES
from fedsim.runs import read_lines

PLAN = experiments()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, str], Ended]]:
    """What each experiment comes to when nothing happens."""
    out = {}
    for name, experiment in PLAN.items():
        path = tmp_path_factory.mktemp("whole") / name
        ended = begun(experiment, path)
        assert ended.code == 0, (path / "manifest.json").read_text()
        out[name] = hashes(path), ended
    return out


@pytest.mark.parametrize("name", PLAN)
def test_an_experiment_has_something_to_lose(whole: dict[str, Any], name: str) -> None:
    found, _ = whole[name]
    assert {"rounds.jsonl", "attacks.jsonl", "checkpoints/round-4.safetensors"} <= set(found)
    assert any(file.startswith("captures/") for file in found)


COUNTS = {"checkpoint.part": (2, 9, 14), "attack.found": (1, 2, 3), "attack.line": (1, 2, 3), "run.ending": (1, 1, 1)}
"""At which time a place is fatal, where it is not the first, third and fourth."""


@pytest.mark.parametrize("turn", range(3) if WHOLE else [1])
@pytest.mark.parametrize("place", NAMES)
def test_killed_at_a_failpoint(place: str, turn: int, whole: dict[str, Any], tmp_path: Path, tally: Tally) -> None:
    tally("kill -9 of the driver at a named failpoint")
    name = list(PLAN)[(NAMES.index(place) + turn) % len(PLAN)]
    count = COUNTS.get(place, (1, 3, 4))[turn]
    killed = begun(PLAN[name], tmp_path / "run", f"{place}:{count}")
    assert killed.code == -signal.SIGKILL, f"{place}:{count} was not reached in '{name}'"
    assert resumed(tmp_path / "run").code == 0
    assert hashes(tmp_path / "run") == whole[name][0]
    assert not (tmp_path / "run" / "resume").exists()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "done" and len(manifest["resumed"]) == 1
    assert not manifest["warnings"] or not any("anew" in text for text in manifest["warnings"])


@pytest.mark.parametrize("number", range(50 if WHOLE else 5))
def test_killed_at_a_random_moment(number: int, whole: dict[str, Any], tmp_path: Path, tally: Tally) -> None:
    """As often as it takes: each try is killed, a third of them twice."""
    tally("kill -9 of the driver at a random moment")
    chance = random.Random(number)
    name = chance.choice(list(PLAN))
    expected, ended = whole[name]
    path = tmp_path / "run"
    code = begun(PLAN[name], path, kill_after=chance.uniform(0.02, 1.0) * ended.seconds).code
    for _ in range(chance.choice([0, 0, 1])):
        if code == -signal.SIGKILL and (path / "experiment.toml").exists():
            code = resumed(path, kill_after=chance.uniform(0.02, 1.0) * ended.seconds).code
    if not (path / "experiment.toml").exists():  # it had not begun; nothing is lost
        return
    if code == -signal.SIGKILL:
        code = resumed(path).code
    assert code == 0
    assert hashes(path) == expected


def test_killed_again_and_again_it_still_gets_there(whole: dict[str, Any], tmp_path: Path, tally: Tally) -> None:
    tally("kill -9 of the driver at a named failpoint", 4)
    path = tmp_path / "run"
    assert begun(PLAN["stateful"], path, "checkpoint.written:2").code == -signal.SIGKILL
    for place in ("checkpoint.part:3", "round.line:2", "attack.line:1"):
        assert resumed(path, place).code == -signal.SIGKILL
    assert resumed(path).code == 0
    assert hashes(path) == whole["stateful"][0]


def test_rounds_that_are_done_are_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert begun(PLAN["private"], path, "round.asked:3").code == -signal.SIGKILL
    before = (path / "timings.jsonl").read_bytes()
    assert resumed(path).code == 0
    after = (path / "timings.jsonl").read_bytes()
    # The times of rounds 0 to 2 are those that were measured then.
    assert after.startswith(before)
    timed = [line["round"] for line in read_lines(path / "timings.jsonl") if "round" in line]
    assert timed == [0, 1, 2, 3, 4]


def test_half_a_file_is_not_left_behind(whole: dict[str, Any], tmp_path: Path) -> None:
    """One that was being written when the process was killed, under the name that it has until it is whole."""
    path = tmp_path / "run"
    assert begun(PLAN["private"], path, "round.asked:3").code == -signal.SIGKILL
    halves = [path / "truth" / ".c1-r2.safetensors.ab12cd34", path / ".manifest.json.ab12cd34"]
    for half in halves:
        half.write_bytes(b"half of it")
    assert resumed(path).code == 0
    assert not any(half.exists() for half in halves)
    assert hashes(path) == whole["private"][0]
