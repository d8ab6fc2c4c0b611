"""Notes of any kind and size come out as a few short lines."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from fedsim.report.noting import LONGEST_NOTE, MOST_NOTES, brief, noted, notes
from fedsim.report.reading import attack_of

LAYERS = [{"layer": f"conv{n}", "rank": 10, "unknowns": 12} for n in range(6)]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("eager", "eager"),
        (None, "none"),
        (True, "yes"),
        (7, "7"),
        (-3, "-3"),
        (0.123456789, "0.1235"),
        (1e-7, "1e-07"),
        (math.nan, "-"),
        ([], "none"),
        ({}, "none"),
        ([0.5, 0.25], "0.5, 0.25"),
        (["a", 1, None], "a, 1, none"),
        (list(range(100)), "0, 1, 2, 3, 4, 5, ..., 99"),
        (list(range(8)), "0, 1, 2, 3, 4, 5, 6, 7"),
        (LAYERS, "6 entries, in attacks.jsonl"),
        ([[1, 2], [3]], "2 entries, in attacks.jsonl"),
        ({"conv1": 0.25, "fc": 3}, "conv1 0.25, fc 3"),
        ({"conv1": [1, 2]}, "1 entry, in attacks.jsonl"),
        ({str(n): n for n in range(50)}, "50 entries, in attacks.jsonl"),
    ],
)
def test_brief(value: Any, words: str) -> None:
    assert brief(value) == words


def test_nothing_is_longer_than_a_note(make_attack: Callable[..., dict[str, Any]]) -> None:
    deep: Any = 1
    for _ in range(500):
        deep = [deep]
    for value in ("x " * 5000, ["long words " * 50] * 8, {"k" * 300: "v"}, 10**5000, deep, {"a": deep}):
        assert len(brief(value)) <= LONGEST_NOTE
    attack = attack_of(make_attack(notes={"k" * 5000: 1} | {f"note_{n}": n for n in range(30)}))
    told = notes(attack)
    assert len(told) == MOST_NOTES + 1
    assert all(len(key) <= LONGEST_NOTE for key, _ in told)
    assert told[1] == ("note 0", "0")
    assert told[-1] == ("and", "23 more in attacks.jsonl")


def test_the_notes_of_many_attacks_are_one_entry(make_attack: Callable[..., dict[str, Any]]) -> None:
    attacks = [attack_of(make_attack(client=client, job=str(client))) for client in range(500)]
    (one,) = noted([*attacks, attack_of(make_attack(notes={})), attack_of(make_attack(notes="none"))])
    assert (one.adversary, one.notes) == ("geiping", [("engine", "eager")])
    assert one.attacks.startswith("client 0, round 1; client 1, round 1; ")
    assert len(one.attacks) <= LONGEST_NOTE
