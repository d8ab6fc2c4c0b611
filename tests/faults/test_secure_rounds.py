"""Secure aggregation where clients leave, and where somebody lies: the exact sum, or none; and who lied is told."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from faulty import WHOLE, Tally
from flwr.app import ConfigRecord
from secagg.driving import TRAIN, Round, clients_with, outcome

from fedsim.errors import ProtocolError
from fedsim.secagg.base import Refused, RoundClosed
from fedsim.secagg.plus import SecAggPlus

STAGES = ("keys", "shares", TRAIN, "unmask")
CLIENTS = clients_with(10)
VICTIM = 6


@pytest.mark.parametrize("stage", (*STAGES, "any"))
def test_thirty_percent_leave(stage: str, tally: Tally) -> None:
    """Each client with probability 0.3, at a stage, or at any: never a wrong sum, which `outcome` sees to."""
    many = 20 if WHOLE else 2
    tally("30 % drops at each secure-aggregation stage", many)
    ends = []
    for number in range(many):
        rng = random.Random(f"{stage} {number}")
        drops: dict[str, set[int]] = {one: set() for one in STAGES}
        for client in CLIENTS:
            if rng.random() < 0.3:
                drops[rng.choice(STAGES) if stage == "any" else stage].add(client)
        ends.append(outcome(Round(SecAggPlus(), CLIENTS, drops=drops)))
    assert set(ends) <= {"exact", "closed"}
    assert "exact" in ends


@pytest.mark.parametrize("stage", STAGES if WHOLE else STAGES[-1:])
@pytest.mark.parametrize(("more", "ends"), [(-1, "closed"), (0, "exact"), (1, "exact")])
def test_survivors_around_the_threshold(stage: str, more: int, ends: str, tally: Tally) -> None:
    tally("survivors t - 1, t, t + 1 at each stage")
    threshold = SecAggPlus().parameters(len(CLIENTS)).threshold
    left = set(random.Random(f"{stage} {more}").sample(list(CLIENTS), threshold + more))
    round_ = Round(SecAggPlus(), CLIENTS, drops={stage: set(CLIENTS) - left})
    assert outcome(round_) == ends
    assert not round_.failures


Change = Callable[[ConfigRecord], Any]


def flipped(record: ConfigRecord, key: str) -> None:
    data = bytearray(record[key])  # type: ignore[arg-type]
    data[len(data) // 2] ^= 1
    record[key] = bytes(data)


def swapped(record: ConfigRecord) -> None:
    record["encrypted/0"], record["encrypted/3"] = record["encrypted/3"], record["encrypted/0"]


def added(key: str, *items: int) -> Change:
    return lambda record: record.update({key: [*record[key], *items]})  # type: ignore[misc]


REFUSED: dict[str, tuple[str, Change, str]] = {
    "tampered ciphertext": (TRAIN, lambda record: flipped(record, "encrypted/9"), "client 9"),
    "swapped recipients": (TRAIN, swapped, "client"),
    "both shares asked for": ("unmask", added("dropped", 3), "it is asked for both shares of client 3"),
    "unknown id": ("unmask", added("survivors", 999), "an unknown client 999"),
    "duplicate id": ("unmask", added("survivors", 3), "client 3 stands twice among the survivors"),
    "duplicate id drawn": ("keys", added("clients", 3), "client"),
}
"""By what a client is asked: the stage, what is done to the message, and how the client refuses."""


@pytest.mark.parametrize("case", REFUSED if WHOLE else ["both shares asked for"])
def test_a_client_refuses(case: str, tally: Tally) -> None:
    """It names itself and the reason; the others end the round without it, exactly."""
    tally("tampered share or ciphertext, swapped recipients, both shares, unknown or duplicate id")
    stage, change, words = REFUSED[case]

    def hook(at: str, client: int, record: ConfigRecord) -> ConfigRecord:
        if (at, client) == (stage, VICTIM):
            change(record)
        return record

    round_ = Round(SecAggPlus(), CLIENTS, on_query=hook)
    assert outcome(round_) == "exact"
    assert list(round_.failures) == [VICTIM]
    said = round_.failures[VICTIM]
    assert isinstance(said, Refused) and isinstance(said, ProtocolError)
    assert f"client {VICTIM} refuses in round 4" in str(said) and words in str(said)


def test_a_tampered_share_closes_the_round(tally: Tally) -> None:
    """One that is opened, and not what was dealt: no sum is released, and it is said whose secret it is."""
    tally("tampered share or ciphertext, swapped recipients, both shares, unknown or duplicate id")

    def hook(at: str, client: int, record: ConfigRecord) -> ConfigRecord:
        if (at, client) == ("unmask", VICTIM):
            flipped(record, "opened/self/9")
        return record

    with pytest.raises(RoundClosed, match=r"bad share: .* of client 9"):
        Round(SecAggPlus(), CLIENTS, on_reply=hook).run()
