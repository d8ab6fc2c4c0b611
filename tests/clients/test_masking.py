"""The client's half of `secagg+`: what it refuses, in which words, and what it keeps of its secrets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord
from secagg.driving import LAYOUT, MODEL, TRAIN, Round, clients_with, contribution, outcome

from fedsim.clients.masking import PairwiseMasking
from fedsim.clients.masking_stages import Keyed, Sealed, Shared
from fedsim.clients.plain_sum import PlainMasking
from fedsim.errors import ProtocolError
from fedsim.secagg.base import ROUND, Refused, RoundClosed
from fedsim.secagg.ideal import Ideal
from fedsim.secagg.keys import new_pair
from fedsim.secagg.plus import SecAggPlus

SIX = clients_with(6)
"""Ids 0, 3, ... 15, all neighbours of all: threshold 4, as many survivors at least."""

VICTIM = 6
"""The client whose messages are changed."""

Change = Callable[[ConfigRecord], Any]


def changed(stage: str, change: Change, **more: Any) -> Round:
    """A round in which the victim gets a changed message of a stage."""

    def hook(at: str, client: int, record: ConfigRecord) -> ConfigRecord:
        if at == stage and client == VICTIM:
            change(record)
        return record

    return Round(SecAggPlus(), SIX, on_query=hook, **more)


def check_refused(round_: Round, words: str) -> None:
    """The victim refuses, in these words; the others end the round without it, exactly or not at all."""
    outcome(round_)
    assert list(round_.failures) == [VICTIM]
    error = round_.failures[VICTIM]
    assert isinstance(error, Refused)
    assert f"client {VICTIM} refuses in round 4" in str(error)
    assert words in str(error)


def move(record: ConfigRecord, client: int) -> None:
    """From the survivors to the dropped."""
    record["survivors"] = [one for one in record["survivors"] if one != client]  # type: ignore[union-attr]
    record["dropped"] = [*record["dropped"], client]  # type: ignore[misc]


def add(key: str, *items: Any) -> Change:
    return lambda record: record.update({key: [*record[key], *items]})  # type: ignore[misc]


def without(key: str, item: Any) -> Change:
    return lambda record: record.update({key: [one for one in record[key] if one != item]})  # type: ignore[union-attr]


def put(key: str, value: Any) -> Change:
    return lambda record: record.update({key: value})


def both(*changes: Change) -> Change:
    return lambda record: [change(record) for change in changes]


# --- unmask ---------------------------------------------------------------------------------------------------------

UNMASK = {
    "both shares": (add("dropped", 3), "it is asked for both shares of client 3"),
    "both of itself": (add("dropped", VICTIM), f"it is asked for both shares of client {VICTIM}"),
    "twice": (add("survivors", 3), "client 3 stands twice among the survivors"),
    "unknown survivor": (add("survivors", 999), "an unknown client 999 stands among the survivors"),
    "unknown dropped": (add("dropped", 999), "an unknown client 999 stands among the dropped"),
    "dropped twice": (both(without("survivors", 3), add("dropped", 3, 3)), "client 3 stands twice among the dropped"),
    "itself dropped": (lambda record: move(record, VICTIM), "it is told that it dropped out, but it is being asked"),
    "itself nowhere": (without("survivors", VICTIM), "it sent its vector, but is not among the survivors"),
    "one missing": (without("survivors", 9), "client 9, which gave shares, is neither a survivor nor dropped out"),
    "too few": (
        both(*(lambda record, one=one: move(record, one) for one in (0, 3, 9)), put("total", 3)),
        "too few survivors: 3, and 4 are needed",
    ),
    "too many": (put("total", 7), "7 clients are said to have survived, of 6 that gave shares"),
    "more than are left": (
        lambda record: move(record, 3),
        "6 clients are said to have survived, of 6 that gave shares",
    ),
    "fewer than named": (put("total", 5), "5 clients are said to have survived"),
    "another round": (put(ROUND, 5), "the message is of round 5"),
    "no list": (put("survivors", 3), "'unmask': 'survivors' is not a list of whole numbers"),
    "booleans": (put("survivors", [True]), "'unmask': 'survivors' is not a list of whole numbers"),
    "nothing": (lambda record: record.clear(), "'unmask': 'round' is not a whole number"),
}


@pytest.mark.parametrize("case", UNMASK)
def test_a_request_to_unmask_that_no_honest_server_makes_is_refused(case: str) -> None:
    check_refused(changed("unmask", UNMASK[case][0]), UNMASK[case][1])


SPARSE = SecAggPlus(corrupt=0.05, dropout=0.05)
"""With 52 clients, 14 neighbours each."""


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (TRAIN, "too few clients are left that hold its shares"),
        ("unmask", "too few survivors among its neighbours and itself"),
    ],
)
def test_on_a_sparse_graph_enough_of_its_neighbours_must_be_left(stage: str, words: str) -> None:
    """Of all clients there are enough, and not too many: what is said of the others cannot be checked."""
    threshold, victim = SPARSE.parameters(52).threshold, 6

    def fewer(at: str, client: int, record: ConfigRecord) -> ConfigRecord:
        if (at, client) == (stage, victim):
            near = [one for one in record["survivors"] if one != victim]  # type: ignore[union-attr]
            away = near[: len(near) + 2 - threshold]
            for one in away:
                left_out(one)(record) if stage == TRAIN else move(record, one)
            record["total"] -= len(away)  # type: ignore[operator]
        return record

    check_refused(Round(SPARSE, clients_with(52), on_query=fewer), f"{words}: {threshold - 1}, and {threshold}")


def test_a_client_that_gave_no_shares_is_nobody_to_be_opened() -> None:
    round_ = changed("unmask", add("dropped", 12), drops={"shares": {12}})
    check_refused(round_, "it is asked for a share of client 12, which gave none")


def test_honest_requests_are_answered_with_one_share_of_everybody() -> None:
    round_ = Round(SecAggPlus(), SIX, drops={"train": {3}})
    round_.run()
    assert not round_.failures
    for stage, client, query, reply in round_.sent:
        if stage == "unmask":
            opened = sorted(key for key in reply if key != ROUND)
            assert opened == sorted(["opened/key/3", *(f"opened/self/{one}" for one in SIX if one != 3)])
            assert query["dropped"] == [3] and client in query["survivors"]  # type: ignore[operator]


def test_a_second_request_is_refused_and_nothing_is_left_to_answer_it_with() -> None:
    round_ = Round(SecAggPlus(), SIX)
    round_.run()
    assert all(not memory for memory in round_.memories.values())
    query = next(query for stage, client, query, _ in round_.sent if (stage, client) == ("unmask", VICTIM))
    with pytest.raises(Refused, match=r"asked for 'unmask', but holds nothing of this round, which .* is over"):
        round_.half(VICTIM).answer("unmask", query)


# --- shares ---------------------------------------------------------------------------------------------------------


def rekeyed(key: str, place: int, value: bytes) -> Change:
    return lambda record: record.update({key: [*record[key][:place], value, *record[key][place + 1 :]]})  # type: ignore[index]


def fewer(record: ConfigRecord) -> None:
    """One neighbour less, and the degree says so."""
    for key in ("neighbours", "cipher_keys", "mask_keys"):
        record[key] = record[key][1:]  # type: ignore[index]
    record["degree"] -= 1  # type: ignore[operator]


def renamed(old: int, new: int) -> Change:
    return lambda record: record.update({"neighbours": [new if one == old else one for one in record["neighbours"]]})  # type: ignore[union-attr]


def repeated(record: ConfigRecord) -> None:
    record["mask_keys"] = [record["mask_keys"][1], *record["mask_keys"][1:]]  # type: ignore[index]


def both_purposes(record: ConfigRecord) -> None:
    record["mask_keys"] = record["cipher_keys"]


def few(record: ConfigRecord) -> None:
    kept = [0, 3]
    record["clients"] = [*kept, VICTIM]
    record["neighbours"], record["degree"] = kept, 2
    for key in ("cipher_keys", "mask_keys"):
        record[key] = record[key][:2]  # type: ignore[index]


SHARES = {
    "threshold lower": (put("threshold", 3), "the threshold is said to be 3, but it is 4"),
    "threshold one": (put("threshold", 1), "the threshold is said to be 1, but it is 4"),
    "threshold higher": (put("threshold", 6), "the threshold is said to be 6, but it is 4"),
    "degree lower": (put("degree", 4), "it has 5 neighbours of a said 4, but 5 are to be"),
    "neighbour less": (fewer, "it has 4 neighbours of a said 4, but 5 are to be"),
    "not among them": (without("clients", VICTIM), "it gave keys, but is not among the clients that did"),
    "twice": (add("clients", 3), "client 3 stands twice among the clients that gave keys"),
    "unknown": (add("clients", 4), "an unknown client 4 stands among the clients that gave keys"),
    "unknown neighbour": (renamed(3, 4), "an unknown client 4 stands among the neighbours"),
    "neighbour twice": (renamed(3, 0), "client 0 stands twice among the neighbours"),
    "itself": (renamed(3, VICTIM), "it is called a neighbour of itself"),
    "two with one key": (repeated, "a public key is said to be that of two neighbours, or for two purposes"),
    "key for both": (both_purposes, "a public key is said to be that of two neighbours, or for two purposes"),
    "zero key": (rekeyed("mask_keys", 2, bytes(32)), "low order"),
    "zero cipher key": (rekeyed("cipher_keys", 2, bytes(32)), "low order"),
    "short key": (rekeyed("mask_keys", 2, bytes(31)), "'mask_keys' holds what is not 32 bytes"),
    "keys missing": (put("mask_keys", []), "'mask_keys' is not a list of 5 keys"),
    "too few": (few, "too few clients gave keys: 3, and 4 are needed"),
    "another round": (put(ROUND, 3), "the message is of round 3"),
}


@pytest.mark.parametrize("case", SHARES)
def test_a_request_for_shares_that_no_honest_server_makes_is_refused(case: str) -> None:
    check_refused(changed("shares", SHARES[case][0]), SHARES[case][1])


@pytest.mark.parametrize("key", ["cipher_keys", "mask_keys"])
def test_its_own_key_is_not_taken_for_that_of_another(key: str) -> None:
    round_ = Round(SecAggPlus(), SIX)
    own: dict[str, bytes] = {}

    def listen(stage: str, client: int, record: ConfigRecord) -> None:
        if (stage, client) == ("keys", VICTIM):
            own.update(cipher_keys=record["keys/cipher"], mask_keys=record["keys/mask"])  # type: ignore[arg-type]

    def echo(stage: str, client: int, record: ConfigRecord) -> ConfigRecord:
        if (stage, client) == ("shares", VICTIM):
            rekeyed(key, 1, own[key])(record)
        return record

    round_.on_reply, round_.on_query = listen, echo  # type: ignore[assignment]
    check_refused(round_, "its own public key comes back as one of client 3")


# --- keys -----------------------------------------------------------------------------------------------------------

KEYS = {
    "not drawn": (without("clients", VICTIM), "it is not among the clients that were drawn"),
    "too few": (without("clients", 3), "5 clients were drawn, and not 6"),
    "twice": (add("clients", 3), "client 3 stands twice among the clients that were drawn"),
    "negative": (add("clients", -1), "a client's id is negative"),
    "another round": (put(ROUND, 1), "the message is of round 1"),
    "words": (put("clients", ["3"]), "'keys': 'clients' is not a list of whole numbers"),
}


@pytest.mark.parametrize("case", KEYS)
def test_a_request_for_keys_that_no_honest_server_makes_is_refused(case: str) -> None:
    check_refused(changed("keys", KEYS[case][0]), KEYS[case][1])


# --- training -------------------------------------------------------------------------------------------------------


def flipped(sender: int, place: int) -> Change:
    def change(record: ConfigRecord) -> None:
        value = bytearray(record[f"encrypted/{sender}"])  # type: ignore[arg-type]
        value[place] ^= 1
        record[f"encrypted/{sender}"] = bytes(value)

    return change


def swapped(record: ConfigRecord) -> None:
    record["encrypted/3"], record["encrypted/9"] = record["encrypted/9"], record["encrypted/3"]


def left_out(*senders: int) -> Change:
    def change(record: ConfigRecord) -> None:
        record["survivors"] = [one for one in record["survivors"] if one not in senders]  # type: ignore[union-attr]
        for sender in senders:
            del record[f"encrypted/{sender}"]

    return change


ALONG = {
    "nonce changed": (flipped(9, 0), f"what client 9 encrypted for client {VICTIM} was changed on its way"),
    "ciphertext changed": (flipped(9, 20), f"what client 9 encrypted for client {VICTIM} was changed on its way"),
    "tag changed": (flipped(9, -1), f"what client 9 encrypted for client {VICTIM} was changed on its way"),
    "senders swapped": (swapped, f"what client 3 encrypted for client {VICTIM} was changed on its way"),
    "cut short": (put("encrypted/3", b"short"), f"what client 3 encrypted for client {VICTIM} is cut short"),
    "unknown sender": (
        both(add("survivors", 4), put("encrypted/4", bytes(94))),
        "an unknown client 4 stands among the neighbours that gave shares",
    ),
    "another list": (without("survivors", 3), "'survivors' are not those whose shares came along"),
    "too few": (both(left_out(0, 3, 9), put("total", 3)), "too few clients gave shares: 3, and 4 are needed"),
    "too many": (put("total", 7), "7 clients are said to have given shares, of 6 that gave keys"),
    "more than are left": (left_out(3), "6 clients are said to have given shares, of 6 that gave keys, and 1 of its"),
    "fewer than named": (put("total", 5), "5 clients are said to have given shares"),
    "another round": (put(ROUND, 5), "the message is of round 5"),
    "no client": (put("encrypted/03", bytes(94)), "'encrypted/03' is not the bytes of a client"),
}


@pytest.mark.parametrize("case", ALONG)
def test_what_no_honest_server_sends_along_is_refused(case: str) -> None:
    check_refused(changed(TRAIN, ALONG[case][0]), ALONG[case][1])


def test_shares_for_another_receiver_are_refused() -> None:
    other: dict[str, Any] = {}

    def swap(stage: str, client: int, record: ConfigRecord) -> ConfigRecord:
        if stage == TRAIN and client == 3:  # asked before the victim
            other["encrypted"] = record["encrypted/9"]
        if stage == TRAIN and client == VICTIM:
            record["encrypted/9"] = other["encrypted"]
        return record

    check_refused(Round(SecAggPlus(), SIX, on_query=swap), f"what client 9 encrypted for client {VICTIM} was changed")


def test_training_without_shares_is_refused() -> None:
    round_ = Round(SecAggPlus(), SIX)
    round_.server.prepare(round_.ask)
    with pytest.raises(Refused, match="no shares came along"):
        round_.seal(VICTIM, None)


def test_keys_that_were_exchanged_on_the_way_are_found_before_any_vector_is_sent() -> None:
    def exchange(stage: str, client: int, record: ConfigRecord) -> ConfigRecord:
        if (stage, client) == ("keys", VICTIM):
            record["keys/mask"] = new_pair().public
        return record

    round_ = Round(SecAggPlus(), SIX, on_reply=exchange)
    with pytest.raises(RoundClosed, match="0 of 6 clients sent their vectors"):
        round_.run()
    assert not round_.sealed
    others = [str(error) for client, error in round_.failures.items() if client != VICTIM]
    assert len(others) == 5 and all(f"what client {VICTIM} encrypted" in error for error in others)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_cannot_be_summed_never_leaves(value: float) -> None:
    spoilt = contribution(5)
    spoilt = replace(spoilt, update={**spoilt.update, "bias": torch.full((3,), value)})
    round_ = Round(SecAggPlus(), {**SIX, VICTIM: spoilt})
    total = round_.run()
    assert VICTIM not in total.clients and VICTIM not in round_.sealed
    error = round_.failures[VICTIM]
    assert isinstance(error, ProtocolError) and not isinstance(error, Refused)
    assert "update/bias holds" in str(error)


# --- the order of things --------------------------------------------------------------------------------------------


def advanced(to: str) -> Round:
    """A round in which the clients await `to`."""
    round_ = Round(SecAggPlus(), SIX, drops={to: set(SIX)} if to in ("keys", "shares") else {})
    if to in ("keys", "shares"):
        with pytest.raises(RoundClosed):
            round_.prepare()
    elif to == TRAIN:
        round_.server.prepare(round_.ask)
    else:
        round_.prepare()
    return round_


WORDS = {
    ("keys", "shares"): "holds nothing of this round",
    ("keys", TRAIN): "holds nothing of this round",
    ("keys", "unmask"): "holds nothing of this round",
    ("shares", "keys"): "asked for 'keys' a second time",
    ("shares", TRAIN): "asked for 'train' before 'shares'",
    ("shares", "unmask"): "asked for 'unmask' before 'shares'",
    (TRAIN, "keys"): "asked for 'keys' a second time",
    (TRAIN, "shares"): "asked for 'shares' a second time",
    (TRAIN, "unmask"): "asked for 'unmask' before 'train'",
    ("unmask", "keys"): "asked for 'keys' a second time",
    ("unmask", "shares"): "asked for 'shares' a second time",
    ("unmask", TRAIN): "asked for 'train' a second time",
}


@pytest.mark.parametrize(("at", "asked"), WORDS)
def test_stages_out_of_order_are_refused(at: str, asked: str) -> None:
    round_ = advanced(at)
    half, before = round_.half(VICTIM), dict(round_.memories[VICTIM])
    with pytest.raises(Refused, match=WORDS[at, asked]):
        if asked == TRAIN:
            half.seal(SIX[VICTIM], ConfigRecord({ROUND: 4}), MODEL)
        else:
            half.answer(asked, ConfigRecord({ROUND: 4}))
    assert dict(half.memory) == before


@pytest.mark.parametrize("stage", ["decrypt", TRAIN, "secrets"])
def test_what_is_no_stage_is_refused(stage: str) -> None:
    with pytest.raises(Refused, match=f"'{stage}' is nothing that a client is asked for"):
        advanced(TRAIN).half(VICTIM).answer(stage, ConfigRecord({ROUND: 4}))


def test_another_round_finds_nothing_of_this_one() -> None:
    old = advanced("unmask")
    query = ConfigRecord({ROUND: 5, "survivors": sorted(SIX), "dropped": [], "total": 6})
    half = PairwiseMasking(SecAggPlus(), old.terms, VICTIM, 5, old.memories[VICTIM])  # type: ignore[arg-type]
    with pytest.raises(Refused, match="holds nothing of this round"):
        half.answer("unmask", query)
    half.answer("keys", ConfigRecord({ROUND: 5, "clients": sorted(SIX)}))
    assert half.memory[ROUND] == 5
    late = PairwiseMasking(SecAggPlus(), old.terms, VICTIM, 4, half.memory)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="of round 4, but it is in round 5 already"):
        late.answer("keys", ConfigRecord({ROUND: 4, "clients": sorted(SIX)}))


# --- secrets --------------------------------------------------------------------------------------------------------


def test_keys_are_fresh_in_every_round_and_for_every_client() -> None:
    keys: list[bytes] = []

    def listen(stage: str, client: int, record: ConfigRecord) -> None:
        if stage == "keys":
            keys.extend((record["keys/cipher"], record["keys/mask"]))  # type: ignore[arg-type]

    for _ in range(2):
        Round(SecAggPlus(), SIX, on_reply=listen).run()  # type: ignore[arg-type]
    assert len(set(keys)) == len(keys) == 24


@pytest.mark.parametrize(("stage", "kind"), [("shares", Keyed), (TRAIN, Shared), ("unmask", Sealed)])
def test_no_secret_shows_when_a_state_is_printed(stage: str, kind: type) -> None:
    half = advanced(stage).half(VICTIM)
    state = half._state(stage)
    assert isinstance(state, kind)
    shown = repr(state)
    secret = ("cipher_private", "mask_private", "seed", "own_share", "of_seeds", "of_keys")
    held = [name for name in secret if hasattr(state, name)]
    assert held
    for name in held:
        value = getattr(state, name)
        for one in value if isinstance(value, tuple) else (value,):
            assert repr(one)[2:-1] not in shown
        assert name not in shown


def test_keys_and_seed_are_gone_as_soon_as_the_vector_is_sent() -> None:
    round_ = advanced(TRAIN)
    before = [dict(memory) for memory in round_.memories.values()]
    secrets = {memory[name] for memory in before for name in ("cipher_private", "mask_private", "seed")}
    assert len(secrets) == 18
    after = advanced("unmask")
    assert {"cipher_private", "mask_private", "seed"}.isdisjoint(after.memories[VICTIM])


def test_what_leaves_a_client_holds_none_of_its_secrets() -> None:
    round_ = Round(SecAggPlus(), SIX)
    secrets: set[bytes] = set()
    round_.server.prepare(round_.ask)
    for memory in round_.memories.values():
        secrets |= {memory[name] for name in ("cipher_private", "mask_private", "seed", "own_share")}  # type: ignore[misc]
    left = b"".join(value for *_, reply in round_.sent for value in reply.values() if isinstance(value, bytes))
    assert not [secret for secret in secrets if secret in left]


# --- ideal ----------------------------------------------------------------------------------------------------------


def test_under_ideal_nothing_is_asked_and_nothing_kept() -> None:
    round_ = Round(Ideal(), SIX)
    half = round_.half(VICTIM)
    assert isinstance(half, PlainMasking)
    with pytest.raises(Refused, match="client 6: asked for 'unmask', but under 'ideal'"):
        half.answer("unmask", ConfigRecord())
    half.seal(contribution(1, LAYOUT), None, MODEL)
    assert not half.memory
