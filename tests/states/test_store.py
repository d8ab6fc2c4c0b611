"""Checkpoints: whole or not there, the last two kept, damage found."""

from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import runs
from fedsim.errors import FedsimError
from fedsim.states.store import Checkpoints


def state(number: int) -> dict[str, Any]:
    return {
        "server": {"done": number, "parameters": {"w": torch.full((40,), float(number))}},
        "run": {"warnings": ["a"], "rounds": 10 * number},
        "constant": torch.arange(50),
        "moments": {"m_t": {"w": np.full((2, 3), number / 3)}, "none": None},
    }


def files(path: Path) -> set[str]:
    return {str(one.relative_to(path)) for one in path.rglob("*") if one.is_file()}


def test_the_newest_is_read_back(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "resume")
    for number in (1, 2, 12):
        store.write(number, state(number))
    said: list[str] = []
    found = Checkpoints(tmp_path / "resume").latest(said.append)
    assert found is not None and not said
    assert found.round == 12
    assert torch.equal(found.state["server"]["parameters"]["w"], torch.full((40,), 12.0))
    assert np.array_equal(found.state["moments"]["m_t"]["w"], np.full((2, 3), 4.0))
    assert found.state["run"] == {"warnings": ["a"], "rounds": 120}


def test_the_last_two_are_kept_and_nothing_else(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    for number in range(5):
        store.write(number, state(number))
    manifests = sorted(name for name in files(tmp_path) if name.endswith(".json"))
    assert manifests == ["round-000003.json", "round-000004.json"]
    used = {part for name in manifests for part in json.loads((tmp_path / name).read_text())["parts"].values()}
    assert {Path(name).stem for name in files(tmp_path / "parts")} == used
    assert len(used) == 7  # two of server, run and moments each, and the one that never changes


def test_what_has_not_changed_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Checkpoints(tmp_path)
    store.write(1, state(1))
    written: list[str] = []
    before = runs.write_whole
    monkeypatch.setattr(
        "fedsim.states.store.write_whole", lambda path, data: (written.append(path.name), before(path, data))
    )
    new = state(2)
    constant = new.pop("constant")
    store.write(2, new, same=("constant",))
    assert len(written) == 4
    found = store.latest(print)
    assert found is not None
    assert torch.equal(found.state["constant"], constant)


@pytest.mark.parametrize("seed", range(20))
def test_damage_is_found_and_the_one_before_is_taken(tmp_path: Path, seed: int) -> None:
    store, chance = Checkpoints(tmp_path), random.Random(seed)
    store.write(1, state(1))
    store.write(2, state(2))
    newest = tmp_path / "round-000002.json"
    older = set(json.loads((tmp_path / "round-000001.json").read_text())["parts"].values())
    own = set(json.loads(newest.read_text())["parts"].values()) - older
    victim = chance.choice([newest, *(tmp_path / "parts" / f"{name}.safetensors" for name in sorted(own))])
    data = bytearray(victim.read_bytes())
    if seed % 2:
        victim.write_bytes(data[: chance.randrange(len(data))])
    else:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        victim.write_bytes(data)
    said: list[str] = []
    store = Checkpoints(tmp_path)
    found = store.latest(said.append)
    assert found is not None and found.round == 1
    assert len(said) == 1 and "round-000002.json is damaged" in said[0] and "the one before it is taken" in said[0]
    # And the run goes on: what is damaged is not there any more when its number comes again.
    store.write(2, state(2))
    again = Checkpoints(tmp_path).latest(said.append)
    assert again is not None and again.round == 2 and len(said) == 1


def test_a_damaged_newer_one_is_removed_when_an_earlier_round_is_written(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    store.write(1, state(1))
    store.write(5, state(5))
    (tmp_path / "round-000005.json").write_text("{")
    store = Checkpoints(tmp_path)
    assert store.latest(lambda text: None) is not None
    store.write(2, state(2))
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["round-000001.json", "round-000002.json"]


def test_all_damaged_is_none_and_said(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    store.write(1, state(1))
    store.write(2, state(2))
    for path in tmp_path.glob("*.json"):
        path.write_text("not JSON")
    said: list[str] = []
    assert Checkpoints(tmp_path).latest(said.append) is None
    assert len(said) == 2 and "begins anew" in said[1]


@pytest.mark.parametrize("fails_at", range(5))
def test_a_full_disk_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    store = Checkpoints(tmp_path)
    store.write(1, state(1))
    before, count = runs.write_whole, 0

    def full(path: Path, data: str | bytes) -> None:
        nonlocal count
        if count == fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        count += 1
        before(path, data)

    monkeypatch.setattr("fedsim.states.store.write_whole", full)
    changed = {**state(2), "constant": torch.arange(51)}
    with pytest.raises(FedsimError, match="No space left"):
        store.write(2, changed)
    monkeypatch.undo()
    found = Checkpoints(tmp_path).latest(lambda text: None)
    assert found is not None and found.round == 1
    store.write(2, changed)
    assert len(files(tmp_path / "parts")) == 8


def test_remove_leaves_nothing(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "resume")
    store.write(1, state(1))
    (tmp_path / "resume" / "parts" / ".x.safetensors.abc").write_text("a crash left it")
    store.remove()
    assert not (tmp_path / "resume").exists()
