"""Ten thousand messages changed on their way: each is refused by client and key, or nothing comes of it; the mean of
the others is the same to the bit.

A case is known by its number: `deliver(NUMBER)` plays it again. All of them: FEDSIM_WHOLE=1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from badinput.delivering import Verdict, deliver, federation
from badinput.federation import CLIENTS, Tampering
from badinput.judging import Unclear
from badinput.messages import OF_ARRAYS, OF_NUMBERS, OF_RECORDS, OF_SETTINGS
from badinput.tables import WHOLE, Tally, tried

import fedsim.grids.flower_internals as flower
from fedsim import reading
from fedsim.clients import requests as train_requests
from fedsim.server import collecting, edge

MESSAGES = 10_000 if WHOLE else 1000


def play(number: int) -> tuple[Iterable[str], Callable[[], str]]:
    kinds: list[str] = []

    def judge() -> str:
        verdict: Verdict = deliver(number)
        kinds.append(verdict.kind)
        return verdict.how

    return kinds, judge


@pytest.mark.timeout(900)
def test_every_changed_message_is_refused_by_client_and_key_or_does_no_harm() -> None:
    tally = Tally(("refused", "closed"))
    tried(tally, range(MESSAGES), play)
    print("\n" + tally.table("messages"))
    tally.check()
    # Every refusal is somebody's words, and not what an exception that nobody foresaw says of itself.
    assert set(tally.cases) == {"refused", "closed", "harmless"}
    told = {kind for kind, _ in tally.found}
    for group in (OF_ARRAYS, OF_RECORDS, OF_NUMBERS, OF_SETTINGS):
        for name in group:
            assert any(name in kind for kind in told), f"never tried: {name}"
    for part in ("keys", "shares", "train", "unmask"):
        for way in ("query", "reply"):
            assert any(kind.startswith(f"secagg+ {part} {way}") for kind in told), (part, way)


def test_an_honest_round_is_as_it_was_recorded() -> None:
    """In whatever way it is played, and under secure aggregation, the sum of a trusted party."""
    everybody = tuple(range(CLIENTS))
    for mode in ("off", "secagg+", "ideal"):
        whole = federation(mode)
        ended = whole.play(Tampering(whole))
        assert ended.record.clients == everybody and not ended.record.dropouts
        if mode == "off":
            assert ended.same_model(whole.expected(everybody))
        if mode == "secagg+":
            trusted = federation("ideal")
            assert ended.same_model(trusted.play(Tampering(trusted)))
        assert not ended.same_model(whole.start)


# --- the yardstick: what is broken on purpose is found ---------------------------------------------------------------


def nothing(*arguments: Any) -> None:
    """What stands in the place of a check."""


def whatever_is_there(content: Any, record: str, shapes: Any) -> Any:
    return flower.tensors_in(content, record)


@pytest.mark.parametrize(
    ("where", "name", "instead", "words"),
    [
        (reading, "_refuse_unbounded", nothing, "another model than that of clients"),
        (edge, "_refuse_other", nothing, "another model|is left out|twice, or neither"),
        (edge, "_numbers", lambda metrics, required: dict(metrics), "ends with|another model"),
        (edge, "legible", lambda line: line, "no reason that can be read"),
        (collecting, "_silent", lambda asked, heard: [], "neither in nor out"),
        (train_requests, "read_tensors", whatever_is_there, "another model than that of clients"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_careless_end_is_found(
    where: Any, name: str, instead: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation("off")
    monkeypatch.setattr(where, name, instead)
    with pytest.raises(Unclear, match=words):
        for number in range(400):
            deliver(number)
