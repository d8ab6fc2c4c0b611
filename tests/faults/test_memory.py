"""A GPU without memory enough: fewer trials at a time; where one is too many, the attack fails alone and says so.

With a stand-in for the GPU that has room for so many trials, and no more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crashing import begun, hashes, made, table
from faulty import Tally

from fedsim.adversaries.inversion import engines
from fedsim.runs import read_lines

EXPERIMENT = made(
    "memory",
    table(
        rounds=2,
        save_rounds=[2],
        model={"name": "mlp", "hidden": [8]},
        clients={"count": 2, "algorithm": "fedsgd", "batch_size": 1},
        server={"learning_rate": 0.1},
        adversaries=[
            {
                "name": "geiping", "vantage": "link", "targets": [0], "rounds": [1], "knows": ["labels"],
                "iterations": 3, "restarts": 4, "engine": "compiled", "together": 4,
            },
        ],
    ),
)  # fmt: skip


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`room(2)`: for two trials at a time, in this process and its forks."""
    plain = engines._evaluate
    monkeypatch.setattr(engines, "no_compiler", lambda: None)
    monkeypatch.setattr(engines, "_compiled", lambda step, knowledge, guess: step)

    def made_for(most: int) -> None:
        def evaluate(plan: Any, chunks: Any, restarts: int, compiled: bool) -> Any:
            inner = plain(plan, chunks, restarts, compiled)

            def called(guess: Any) -> Any:
                if len(chunks[0].trials) > most:
                    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
                return inner(guess)

            return called

        monkeypatch.setattr(engines, "_evaluate", evaluate)

    return made_for


def test_once_fewer_trials_run_at_a_time(room: Callable[[int], None], tmp_path: Path, tally: Tally) -> None:
    tally("out of GPU memory once, always")
    lines = []
    for most in (4, 2):
        room(most)
        assert begun(EXPERIMENT, tmp_path / str(most)).code == 0
        lines += read_lines(tmp_path / str(most) / "attacks.jsonl")
    plenty, little = lines
    assert "2 of 4 trials at once, for lack of memory" in json.dumps(little["notes"])
    assert "for lack of memory" not in json.dumps(plenty["notes"])
    assert little["status"] == "done"
    assert abs(little["objective"] - plenty["objective"]) < 1e-4


def test_always_the_attack_fails_and_training_does_not(
    room: Callable[[int], None], tmp_path: Path, tally: Tally
) -> None:
    tally("out of GPU memory once, always")
    for most in (4, 0):
        room(most)
        assert begun(EXPERIMENT, tmp_path / str(most)).code == (0 if most else 3)
    (line,) = read_lines(tmp_path / "0" / "attacks.jsonl")
    assert line["status"] == "failed" and "OutOfMemoryError: CUDA out of memory" in line["error"]
    with_room, without = (hashes(tmp_path / str(most)) for most in (4, 0))
    assert with_room.pop("attacks.jsonl") != without.pop("attacks.jsonl")
    assert with_room == without
