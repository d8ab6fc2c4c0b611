"""`secagg+` under a thousand random sequences of faults and lies: never a wrong sum, never both secrets of a client.

A sequence is known by its number. What fails is made short before it is shown, and can be played again as shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
from secagg import faulty_network, hostile_server
from secagg.sequences import Fault, Script, Tally, Violation, shortest

from fedsim.clients import masking_stages
from fedsim.clients.masking import PairwiseMasking
from fedsim.secagg.base import Total
from fedsim.secagg.plus import SecAggPlus
from fedsim.server.unmasking import PairwiseUnmasking

FAULTY, HOSTILE = 600, 400
"""Sequences of faults under an honest server, and sequences with a malicious one."""

LEAST = 25
"""So often every kind of fault must have happened."""

Play = Callable[[Script, Tally], object]


def played(drawn: Callable[[int], Script], play: Play, number: int, tally: Tally) -> object:
    """What a sequence ends with. A violation fails the test, with the shortest sequence that has it."""
    script, began = drawn(number), time.perf_counter()
    try:
        found = play(script, tally)
    except Violation as violation:
        short = shortest(script, lambda one: violates(one, play))
        pytest.fail(f"sequence {number}: {violation}\nfrom {violation.__cause__!r}\nplay this again: {short}")
    tally.sequences += 1
    tally.worst = max(tally.worst, time.perf_counter() - began)
    return found


def violates(script: Script, play: Play) -> bool:
    try:
        play(script, Tally())
    except Violation:
        return True
    return False


@pytest.mark.timeout(600)
def test_with_an_honest_server_every_sum_is_exact_or_withheld() -> None:
    tally = Tally()
    for number in range(FAULTY):
        played(faulty_network.drawn, faulty_network.play, number, tally)
    print(tally.lines())
    assert tally.sequences == FAULTY and set(tally.outcomes) == {"exact", "closed"}
    assert min(tally.outcomes.values()) > FAULTY / 4, "a test in which nearly all is closed, or nothing, shows little"
    rare = {kind: count for kind, _ in faulty_network.KINDS if (count := tally.faults[kind]) < LEAST}
    assert not rare, f"too seldom: {rare}"
    # Refusals of both sides, and sums that were closed at every point where they can be.
    assert sum(why.startswith("client") for why in tally.refused) > 25
    ends = ("gave keys", "gave shares", "sent their vectors", "secret are left", "a bad share", "none of the updates")
    for words in ends:
        assert any(why.startswith("server") and words in why for why in tally.refused), words


@pytest.mark.timeout(600)
def test_with_a_malicious_server_clients_answer_or_refuse_and_nobody_is_read() -> None:
    tally, split, close = Tally(), 0, 0
    for number in range(HOSTILE):
        watch: Any = played(hostile_server.drawn, hostile_server.play, number, tally)
        script = hostile_server.drawn(number)
        threshold = script.settings.parameters(script.clients).threshold
        split += bool(watch.split())
        # The nearest that it can come: one secret is open, and some shares of the other are.
        close += any(max(len(watch.of_seeds[one]), len(watch.of_keys[one])) >= threshold for one in watch.split())
    print(tally.lines())
    print(f"{split} with shares of both secrets of a client, {close} of them with enough of one")
    assert tally.sequences == HOSTILE and split > HOSTILE / 5 and close > HOSTILE / 10
    assert set(tally.outcomes) == {f"'{stage}' answered" for stage in ("keys", "shares", "train", "unmask")}
    assert min(tally.outcomes.values()) > HOSTILE, "a server that is refused early learns nothing, and neither do we"
    rare = {kind: count for kind, _ in hostile_server.KINDS if (count := tally.faults[kind]) < LEAST}
    assert not rare, f"too seldom: {rare}"
    assert len(tally.refused) > 40


# --- the yardstick: what is broken on purpose is found ----------------------------------------------------------------


class OneMore(PairwiseUnmasking):
    """Adds one to one number of the sum."""

    def open(self, ask: Any) -> Total:
        total = super().open(ask)
        total.sealed[3] += 1
        return total


class OneLess(PairwiseUnmasking):
    """Does not say of one client that it is in the sum."""

    def open(self, ask: Any) -> Total:
        total = super().open(ask)
        return replace(total, clients=total.clients[:-1])


class Twice(PairwiseUnmasking):
    """Takes a second vector of the same client."""

    def take(self, client: int, content: Any) -> None:
        self._ring()._arrived.discard(client)
        super().take(client, content)


class Trusting(PairwiseUnmasking):
    """Does not look whether a restored secret is the right one, nor whether a sum can be one."""

    def open(self, ask: Any) -> Total:
        with (
            mock.patch("fedsim.server.unmasking_replies.public_of", lambda secret: AnyBytes()),
            mock.patch("fedsim.server.unmasking_replies.messages.commitment", lambda *about: AnyBytes()),
            mock.patch.object(type(self._codec), "decode", decoded),
        ):
            return super().open(ask)


class AnyBytes(bytes):
    """Equal to everything."""

    __hash__ = bytes.__hash__

    def __eq__(self, other: object) -> bool:
        return True


def decoded(codec: Any, ring: Any, clients: Any) -> Total:
    return Total(tuple(sorted(clients)), {}, {}, int(ring[-3]), 1.0, sealed=ring)


@pytest.mark.parametrize(
    ("careless", "words"),
    [
        (OneMore, "wrong: the sum is not that of"),
        (OneLess, "wrong: the sum is not that of|a sum of . was opened"),
        (Twice, "took something of client .* that it had to turn down"),
        (Trusting, "wrong: the sum is not that of"),
    ],
)
def test_a_server_that_sums_wrongly_is_found(careless: type, words: str) -> None:
    with pytest.raises(Violation, match=words):
        for number in range(60):
            faulty_network.play(faulty_network.drawn(number), Tally(), careless)


def unchecked(self: object, seat: object, query: object) -> None:
    """What stands in the place of a client's check."""


def without_memory_of_the_end(self: PairwiseMasking, state: Any) -> None:
    if state is not None:
        remember(self, state)


remember = PairwiseMasking._remember


@pytest.mark.parametrize(
    ("where", "name", "instead", "words"),
    [
        (masking_stages.Sealed, "_check", unchecked, "KeyError|opened both shares"),
        (PairwiseMasking, "_remember", without_memory_of_the_end, "still holds|answered 'unmask' of round . twice"),
    ],
)
def test_a_client_that_does_not_look_or_does_not_forget_is_found(
    where: type, name: str, instead: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, instead)
    with pytest.raises(pytest.fail.Exception, match=words):
        for number in range(60):
            played(hostile_server.drawn, hostile_server.play, number, Tally())


def test_with_a_threshold_below_half_a_split_reads_both_secrets_of_a_client() -> None:
    """Two shares of eight open a secret: half of the holders give one secret of the victim, half the other."""
    settings = SecAggPlus(corrupt=0.1, dropout=0.1, neighbours=7, threshold=2, server="honest_but_curious")
    script = Script(1, 8, settings, 1, (Fault("split", 0, "unmask", 4, 7),))
    watch = hostile_server.play(script)
    assert watch.read() == [(hostile_server.FIRST, script.ids[4])]
    safe = replace(script, settings=replace(settings, threshold=None, server="malicious"))
    watch = hostile_server.play(safe)
    assert watch.split() == [(hostile_server.FIRST, script.ids[4])] and watch.read() == []


def test_a_failing_sequence_is_made_short() -> None:
    script = faulty_network.drawn(3)
    faults = tuple(Fault(f"kind {place}", 0, "keys", place, 0) for place in range(20))
    guilty = {"kind 4", "kind 17"}
    short = shortest(replace(script, faults=faults), lambda one: guilty <= {fault.kind for fault in one.faults})
    assert {fault.kind for fault in short.faults} == guilty


def test_a_sequence_is_the_same_every_time() -> None:
    for number in range(12):
        script, tallies = faulty_network.drawn(number), (Tally(), Tally())
        assert script == faulty_network.drawn(number)
        assert faulty_network.play(script, tallies[0]) == faulty_network.play(script, tallies[1])
        assert tallies[0].faults == tallies[1].faults
