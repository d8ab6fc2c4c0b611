"""The server's half of `secagg+` (and of `ideal`): drops, thresholds, and clients that send what they should not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from secagg.driving import MODEL, TRAIN, Round, clients_with, expected, outcome

from fedsim.clients.masking import PairwiseMasking
from fedsim.errors import ProtocolError
from fedsim.grids.flower_internals import to_record
from fedsim.secagg.base import SEALED, Refused, RoundClosed
from fedsim.secagg.ideal import Ideal
from fedsim.secagg.keys import new_pair
from fedsim.secagg.plus import SecAggPlus
from fedsim.secagg.shamir import PRIME
from fedsim.secagg.vectors import VECTOR
from fedsim.server.unmasking import PairwiseUnmasking

SIX = clients_with(6)
"""Ids 0, 3, ... 15, all neighbours of all: threshold 4, as many survivors at least."""

STAGES = ("keys", "shares", TRAIN, "unmask")
ODD = 6
"""The client that does what it should not."""


def replying(stage: str, change: Callable[[ConfigRecord], Any], **more: Any) -> Round:
    """A round in which one client's reply of a stage is changed."""

    def hook(at: str, client: int, record: ConfigRecord) -> ConfigRecord:
        if at == stage and client == ODD:
            change(record)
        return record

    return Round(SecAggPlus(), SIX, on_reply=hook, **more)


def check_left_out(round_: Round, at: str) -> None:
    """The others' sum is exact; the odd one is in it only if it was after training that it left."""
    total = round_.run()
    survivors = [one for one in SIX if one != ODD or at == "unmask"]
    assert list(total.clients) == survivors
    assert round_.terms is not None
    assert np.array_equal(total.sealed, expected(round_.settings, round_.terms, SIX, survivors))


# --- who leaves when ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [0, 6, 15])
@pytest.mark.parametrize("stage", STAGES)
def test_a_client_that_leaves_at_any_stage_is_out_or_in_entirely(stage: str, client: int) -> None:
    round_ = Round(SecAggPlus(), SIX, drops={stage: {client}})
    total = round_.run()
    survivors = [one for one in SIX if one != client or stage == "unmask"]
    assert list(total.clients) == survivors
    assert np.array_equal(total.sealed, expected(round_.settings, round_.terms, SIX, survivors))  # type: ignore[arg-type]
    assert total.examples == sum(SIX[one].examples for one in survivors)
    assert not round_.failures


def test_clients_that_leave_at_different_stages_of_one_round() -> None:
    eight = clients_with(10)
    round_ = Round(SecAggPlus(), eight, drops={"keys": {0}, "shares": {3}, TRAIN: {6}, "unmask": {9}})
    total = round_.run()
    survivors = [9, 12, 15, 18, 21, 24, 27]
    assert list(total.clients) == survivors
    assert np.array_equal(total.sealed, expected(round_.settings, round_.terms, eight, survivors))  # type: ignore[arg-type]


@pytest.mark.parametrize("left", [3, 4, 5])
@pytest.mark.parametrize("stage", STAGES)
def test_below_the_threshold_at_any_stage_the_round_is_closed(stage: str, left: int) -> None:
    settings = SecAggPlus()
    assert settings.parameters(6).threshold == settings.parameters(6).min_survivors == 4
    round_ = Round(settings, SIX, drops={stage: set(sorted(SIX)[left:])})
    if left >= 4:
        assert outcome(round_) == "exact"
        return
    with pytest.raises(RoundClosed, match=r"3 .* and 4 are needed"):
        round_.run()
    # Nothing was opened before it was clear that there are enough.
    assert stage == "unmask" or not [sent for sent in round_.sent if sent[0] == "unmask"]


def test_on_a_sparse_graph_a_client_without_enough_holders_is_left_out_before_it_trains() -> None:
    settings = SecAggPlus(corrupt=0.0, dropout=0.02, server="honest_but_curious")
    many = clients_with(52)
    near: dict[int, list[int]] = {}

    def listen(stage: str, client: int, record: ConfigRecord) -> None:
        if stage == "shares":
            near[client] = record["neighbours"]  # type: ignore[assignment]

    round_ = Round(settings, many, on_query=listen)  # type: ignore[arg-type]
    parameters = settings.parameters(52)
    assert parameters.threshold == 2 and parameters.neighbours < 20
    # All neighbours of client 0 leave: it alone holds shares of its secrets.
    drops: set[int] = set()
    plain = round_.ask

    def ask(stage: str, queries: Mapping[int, ConfigRecord]) -> Iterator[tuple[int, ConfigRecord]]:
        for client, reply in list(plain(stage, queries)):
            if stage == "shares" and not drops:
                drops.update(near[0])
            if not (stage == "shares" and client in drops):
                yield client, reply

    round_.ask = ask  # type: ignore[method-assign]
    total = round_.run()
    assert 0 not in total.clients and 0 not in round_.sealed and not drops & set(total.clients)
    assert not round_.failures
    assert np.array_equal(total.sealed, expected(settings, round_.terms, many, total.clients))  # type: ignore[arg-type]


@pytest.mark.parametrize("left", [2, 3, 4])
def test_under_ideal_too_few_survivors_close_the_round(left: int) -> None:
    round_ = Round(Ideal(), SIX, drops={TRAIN: set(sorted(SIX)[left:])})
    if left >= 3:
        assert outcome(round_) == "exact"
    else:
        with pytest.raises(RoundClosed, match="2 of 6 clients are left, and 3 are needed"):
            round_.run()


# --- replies that cannot be used ------------------------------------------------------------------------------------


def put(key: str, value: Any) -> Callable[[ConfigRecord], Any]:
    return lambda record: record.update({key: value})


def receiver_missing(record: ConfigRecord) -> None:
    del record["encrypted/9"]


USELESS: dict[str, tuple[str, Callable[[ConfigRecord], Any]]] = {
    "short cipher key": ("keys", put("keys/cipher", bytes(31))),
    "long mask key": ("keys", put("keys/mask", bytes(33))),
    "no keys": ("keys", lambda record: record.clear()),
    "words for a key": ("keys", put("keys/mask", "x" * 32)),
    "point of low order": ("keys", put("keys/mask", bytes(32))),
    "one key for both": ("keys", lambda record: record.update({"keys/mask": record["keys/cipher"]})),
    "keys of another round": ("keys", put("round", 3)),
    "receiver missing": ("shares", receiver_missing),
    "receiver too many": ("shares", put("encrypted/4", bytes(94))),
    "share for itself": ("shares", put(f"encrypted/{ODD}", bytes(94))),
    "shares cut short": ("shares", put("encrypted/9", bytes(93))),
    "no receiver": ("shares", put("encrypted/x", bytes(94))),
    "no commitment": ("shares", put("commitment", b"")),
    "nothing opened": ("unmask", lambda record: record.clear()),
    "all too short": ("unmask", lambda record: record.update({key: b"" for key in record if key != "round"})),
    "all too large": (
        "unmask",
        lambda record: record.update({key: PRIME.to_bytes(33, "big") for key in record if key != "round"}),
    ),
    "opened for another round": ("unmask", put("round", 5)),
}


@pytest.mark.parametrize("case", USELESS)
def test_a_reply_that_cannot_be_used_is_as_good_as_none(case: str) -> None:
    stage, change = USELESS[case]
    check_left_out(replying(stage, change), stage)


def test_two_clients_with_one_key_are_both_left_out() -> None:
    eight = clients_with(8)
    same = new_pair().public
    round_ = Round(SecAggPlus(), eight, on_reply=lambda stage, client, record: _same(stage, client, record, same))
    total = round_.run()
    assert list(total.clients) == [one for one in eight if one not in (3, 6)]


def _same(stage: str, client: int, record: ConfigRecord, key: bytes) -> ConfigRecord:
    if stage == "keys" and client in (3, 6):
        record["keys/mask"] = key
    return record


def test_replies_of_clients_that_were_not_asked_and_second_replies_count_nothing() -> None:
    round_ = Round(SecAggPlus(), SIX)
    plain = round_.ask

    def ask(stage: str, queries: Mapping[int, ConfigRecord]) -> Iterator[tuple[int, ConfigRecord]]:
        given = list(plain(stage, queries))
        for client, reply in given:
            yield client, reply
            yield client + 1, reply
        yield from reversed([(given[0][0], reply) for _, reply in given])

    round_.ask = ask  # type: ignore[method-assign]
    assert outcome(round_) == "exact"


def wrong_share(key: str) -> Callable[[ConfigRecord], Any]:
    return lambda record: record.update({key: bytes(32) + b"\x07"})


def test_a_false_share_of_a_key_closes_the_round() -> None:
    round_ = replying("unmask", wrong_share("opened/key/3"), drops={TRAIN: {3}})
    with pytest.raises(RoundClosed, match=r"bad share: what clients 0, 6, 9, 12 hold of client 3 .* the key"):
        round_.run()


def test_a_false_share_of_a_seed_closes_the_round() -> None:
    round_ = replying("unmask", wrong_share("opened/self/9"))
    with pytest.raises(RoundClosed, match=r"bad share: what clients 0, 3, 6, 9 hold of client 9 .* the self mask"):
        round_.run()


def test_a_share_that_is_missing_or_none_does_not_matter_where_others_do() -> None:
    assert outcome(replying("unmask", wrong_share("opened/self/9"))) == "closed"
    assert outcome(replying("unmask", put("opened/self/9", b"no share"))) == "exact"
    assert outcome(replying("unmask", lambda record: record.pop("opened/self/9"))) == "exact"
    # Four are needed, and only four are there.
    few = replying("unmask", put("opened/self/9", b"no share"), drops={"unmask": {12, 15}})
    with pytest.raises(RoundClosed, match="3 shares of client 9's secret are left, and 4 are needed"):
        few.run()


def test_a_false_commitment_closes_the_round() -> None:
    with pytest.raises(RoundClosed, match=f"bad share: .* of client {ODD} "):
        replying("shares", put("commitment", bytes(32))).run()


@pytest.mark.parametrize("key", ["keys/cipher", "keys/mask"])
def test_a_wrong_public_key_never_makes_a_wrong_sum(key: str) -> None:
    assert outcome(replying("keys", lambda record: record.update({key: new_pair().public}))) == "closed"


@pytest.mark.parametrize("drops", [{}, {TRAIN: {ODD}}, {TRAIN: {3}}])
def test_a_client_that_was_sent_another_model_spoils_the_sum_and_nothing_is_released(
    drops: dict[str, set[int]],
) -> None:
    round_ = Round(SecAggPlus(), SIX, models={ODD: bytes(32)}, drops=drops)
    if ODD in drops.get(TRAIN, ()):
        assert outcome(round_) == "exact"  # whatever it was sent, it is not in the sum
        return
    with pytest.raises(RoundClosed, match="masks did not cancel, as when clients were sent different models"):
        round_.run()


# --- vectors --------------------------------------------------------------------------------------------------------


def vector(size: int, dtype: torch.dtype = torch.int32, name: str = VECTOR) -> RecordDict:
    return RecordDict({SEALED: to_record({name: torch.ones(size, dtype=dtype)})})


SIZE = 45
VECTORS: dict[str, tuple[RecordDict, str]] = {
    "nothing": (RecordDict({"update": to_record({"weight": torch.ones(3)})}), "the record 'sealed' is missing"),
    "numbers": (RecordDict({SEALED: MetricRecord({"vector": 1})}), "the record 'sealed' is missing"),
    "empty": (RecordDict({SEALED: ArrayRecord()}), "sealed/vector is missing"),
    "another name": (vector(SIZE, name="weights"), "sealed/weights is not a name"),
    "too short": (vector(SIZE - 1), r"sealed/vector has shape \(44,\), not \(45,\)"),
    "too long": (vector(SIZE + 1), r"sealed/vector has shape \(46,\), not \(45,\)"),
    "another shape": (
        RecordDict({SEALED: to_record({VECTOR: torch.ones(5, 9, dtype=torch.int32)})}),
        r"sealed/vector has shape \(5, 9\)",
    ),
    "64 bits": (vector(SIZE, torch.int64), "sealed/vector has type torch.int64, not torch.int32"),
    "floats": (vector(SIZE, torch.float32), "sealed/vector has type torch.float32, not torch.int32"),
}


@pytest.mark.parametrize("settings", [Ideal(), SecAggPlus()], ids=["ideal", "secagg+"])
@pytest.mark.parametrize("case", VECTORS)
def test_a_vector_that_is_none_is_refused_and_the_sum_is_as_it_was(case: str, settings: Ideal) -> None:
    content, words = VECTORS[case]
    round_ = Round(settings, SIX, on_sealed=lambda client, sealed: content if client == ODD else sealed)
    check_left_out(round_, TRAIN)
    assert not isinstance(round_.failures[ODD], Refused)
    with pytest.raises(ProtocolError, match=words):
        raise round_.failures[ODD]


@pytest.mark.parametrize("settings", [Ideal(), SecAggPlus()], ids=["ideal", "secagg+"])
def test_vectors_of_strangers_second_vectors_and_late_ones_are_refused(settings: Ideal) -> None:
    round_ = Round(settings, SIX, drops={TRAIN: {ODD}})
    round_.prepare()
    with pytest.raises(ProtocolError, match="client 4 was not to send a vector in this round"):
        round_.server.take(4, vector(SIZE))
    with pytest.raises(ProtocolError, match="client 3 sent a second vector in the same round"):
        round_.server.take(3, vector(SIZE))
    total = round_.finish()
    before = total.sealed.copy()
    with pytest.raises(ProtocolError, match=f"the vector of client {ODD} came after the sum was closed"):
        round_.server.take(ODD, vector(SIZE))
    assert np.array_equal(total.sealed, before)
    assert np.array_equal(before, expected(settings, round_.terms, SIX, [0, 3, 9, 12, 15]))  # type: ignore[arg-type]


def test_a_client_that_gave_no_shares_owes_no_vector() -> None:
    round_ = Round(SecAggPlus(), SIX, drops={"shares": {ODD}})
    round_.prepare()
    with pytest.raises(ProtocolError, match=f"client {ODD} was not to send a vector"):
        round_.server.take(ODD, vector(SIZE))


def test_nothing_is_taken_or_opened_before_clients_agreed() -> None:
    server = PairwiseUnmasking(SecAggPlus(), Round(SecAggPlus(), SIX).terms, 4, SIX, MODEL)  # type: ignore[arg-type]
    with pytest.raises(RoundClosed, match="no clients have agreed on masks"):
        server.take(3, vector(SIZE))
    with pytest.raises(RoundClosed, match="no clients have agreed on masks"):
        server.open(lambda stage, queries: ())


# --- what the server asks -------------------------------------------------------------------------------------------


def test_no_client_is_ever_asked_for_both_shares_of_another() -> None:
    round_ = Round(SecAggPlus(), SIX, drops={"shares": {0}, TRAIN: {3}})
    round_.run()
    asked = [query for stage, _, query, _ in round_.sent if stage == "unmask"]
    assert len(asked) == 4
    for query in asked:
        assert query["survivors"] == [6, 9, 12, 15] and query["dropped"] == [3]


def test_a_client_that_refuses_to_unmask_leaves_the_sum_exact() -> None:
    class Stubborn(PairwiseMasking):
        def answer(self, stage: str, query: ConfigRecord) -> ConfigRecord:
            if stage == "unmask" and self._seat.client == ODD:
                raise Refused("no")
            return super().answer(stage, query)

    round_ = Round(SecAggPlus(), SIX, masking=Stubborn)
    check_left_out(round_, "unmask")
    assert list(round_.failures) == [ODD]
