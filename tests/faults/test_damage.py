"""A checkpoint or a capture that was cut short, or in which a bit is another: found by its hash, and made good."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from crashing import begun, commanded, experiments, hashes
from faulty import WHOLE, Tally

PLAN = experiments()

PLACES = ("checkpoint.written:3", "round.line:4", "attack.line:2")
"""Where a run was killed: with two checkpoints, in the midst of a round, and among its attacks."""


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`broken_off(name, place, path)`: a run that was killed there, at that path; what it would have come to."""
    folder = tmp_path_factory.mktemp("damage")

    def make(name: str, place: str, path: Path) -> dict[str, str]:
        killed, whole = folder / f"{name} {place}", folder / name
        if not whole.exists():
            assert begun(PLAN[name], whole).code == 0
        if not killed.exists():
            killed.mkdir()
            assert begun(PLAN[name], killed / "run", place).code < 0
        shutil.copytree(killed, path.parent, dirs_exist_ok=True)  # with the truth, which may lie beside the run
        return hashes(whole)

    return make


def of_checkpoint(run: Path, chance: random.Random) -> Path:
    """One of the files that make up the newest checkpoint and none before it, or one of both."""
    newest = max(run.glob("resume/round-*.json"))
    parts = json.loads(newest.read_text())["parts"].values()
    return chance.choice([newest, *(run / "resume" / "parts" / f"{one}.safetensors" for one in sorted(parts))])


def of_captures(run: Path, chance: random.Random) -> Path:
    """What a checkpoint relies on: of a round before it. What came later is made again, and never read."""
    last = max(run.glob("resume/round-*.json"))
    done = json.loads(last.read_text())["round"]
    known = []
    for job in run.glob("jobs/*"):
        seen = [run / "captures" / f"{one}.safetensors" for one in json.loads(job.read_text())["observations"]]
        if any(f'"round\\": {round_},' in one.read_bytes().decode("latin-1") for one in seen for round_ in range(done)):
            known += [job, *seen]
    return chance.choice(sorted(known))


def damage(path: Path, chance: random.Random, cut: bool) -> None:
    data = bytearray(path.read_bytes())
    if cut:
        path.write_bytes(data[: chance.randrange(len(data))])
    else:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)


def found(run: Path) -> list[str]:
    """What was said of damage."""
    said = json.loads((run / "manifest.json").read_text())["warnings"]
    return [text for text in said if "damaged" in text or "anew" in text]


@pytest.mark.parametrize("number", range(20) if WHOLE else [2, 7])
def test_damage_is_found_and_made_good(number: int, broken_off: Any, tmp_path: Path, tally: Tally) -> None:
    """Of the checkpoint's files, three times in four; else of the captures and jobs."""
    tally("truncated or flipped checkpoint or capture")
    chance = random.Random(number)
    name, place = list(PLAN)[number % 2], PLACES[number % 3]
    run = tmp_path / "run"
    whole = broken_off(name, place, run)
    newest = max(run.glob("resume/round-*.json")).name
    captures = number % 4 == 3
    victim = (of_captures if captures else of_checkpoint)(run, chance)
    damage(victim, chance, cut=bool(number // 2 % 2))

    ended = commanded(tmp_path, "resume", str(run))
    assert ended.code == 0, ended.said
    assert hashes(run) == whole
    said = " ".join(found(run))
    assert "damaged" in said, said
    if captures:
        assert victim.stem in said and "begins anew" in said
    else:
        assert f"checkpoint {newest} is damaged" in said
        assert "the one before it is taken" in said or "begins anew" in said


def test_a_list_of_rounds_that_was_cut_short(broken_off: Any, tmp_path: Path) -> None:
    """It has less than the checkpoint says: nothing can be gone on from."""
    run = tmp_path / "run"
    whole = broken_off("stateful", PLACES[0], run)
    (run / "rounds.jsonl").write_bytes((run / "rounds.jsonl").read_bytes()[:20])
    assert commanded(tmp_path, "resume", str(run)).code == 0
    assert hashes(run) == whole
    (said,) = found(run)
    assert "cut short" in said and "begins anew" in said
