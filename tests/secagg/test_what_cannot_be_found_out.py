"""Limits of `secagg+`, each with a case that shows it; and forms of messages that must not be mistaken for limits."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from secagg.driving import Round, clients_with, expected, vector_of
from secagg.parties import Party, repeatable, terms_of
from secagg.sequences import Tally
from secagg.tampering import NPY, misshapen, raw_vector

import fedsim.grids.flower_internals as flower
from fedsim.errors import ProtocolError
from fedsim.secagg import messages, shamir
from fedsim.secagg.base import ROUND, SEALED
from fedsim.secagg.keys import Context, decrypt, new_pair
from fedsim.secagg.pairing import share_key
from fedsim.secagg.plus import SecAggPlus
from fedsim.secagg.vectors import VECTOR

FIVE = clients_with(5)

VICTIM = 6


def altered(change: Callable[[RecordDict], RecordDict]) -> Round:
    """A round in which the vector of one client is changed on its way."""
    return Round(SecAggPlus(), FIVE, on_sealed=lambda client, content: change(content) if client == VICTIM else content)


def added(value: int, place: int) -> Callable[[RecordDict], RecordDict]:
    def change(content: RecordDict) -> RecordDict:
        vector = torch.from_numpy(vector_of(content).copy())
        vector[place] += value
        return RecordDict({SEALED: flower.to_record({VECTOR: vector})})

    return change


@pytest.mark.parametrize("value", [1, -1, 2**20])
def test_limit_a_vector_whose_numbers_are_changed_on_the_way(value: int) -> None:
    """A mask hides a number and does not vouch for it. Who changes a masked vector changes the sum by as much, which is
    what any client can do by sending another update, and no more: it learns nothing, and the rest stays exact.
    """
    round_ = altered(added(value, 7))
    total = round_.run()
    assert round_.terms is not None and total.clients == tuple(FIVE)
    right = expected(round_.settings, round_.terms, FIVE, FIVE)
    off = (total.sealed - right).view(np.int32)
    assert off[7] == value and not np.delete(off, 7).any()


def test_a_count_that_cannot_be_is_found_out() -> None:
    """The numbers at the end of a vector have bounds that the server knows: they are checked."""
    for place, value in ((-3, 1000), (-3, -100), (-2, 100_000), (-1, -1)):
        with pytest.raises(ProtocolError, match="the sum is none of the updates of 5 clients"):
            altered(added(value, place)).run()


def test_a_vector_of_another_form_is_refused_and_the_others_are_summed() -> None:
    seen = set()
    for seed in range(60):
        told: list[str] = []

        def change(content: RecordDict, seed: int = seed, told: list[str] = told) -> RecordDict:
            out, way = misshapen(content, random.Random(seed))
            told.append(way)
            return out

        if (way := misshapen(_sample(), random.Random(seed))[1]) in seen:
            continue
        seen.add(way)
        round_ = altered(change)
        total = round_.run()
        assert told == [way] and set(total.clients) == set(FIVE) - {VICTIM}, way
        assert round_.terms is not None and VICTIM in round_.failures
        assert np.array_equal(total.sealed, expected(round_.settings, round_.terms, FIVE, total.clients))
    assert len(seen) == 18


def _sample() -> RecordDict:
    return RecordDict({SEALED: flower.to_record({VECTOR: torch.zeros(48, dtype=torch.int32)})})


def npy(shape: str) -> bytes:
    """The beginning of an array on the wire, without the numbers that it promises."""
    text = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (10 + len(text)) % 64) + b"\n"
    return NPY + len(text).to_bytes(2, "little") + text


RAW = {
    "a broken archive": b"PK\x03\x04" + bytes(50),
    "an empty archive": b"PK\x05\x06" + bytes(18),
    "a header without end": NPY + b"\x10\x00" + b"(" * 15 + b"\n",
    "more than fits in memory": npy("(100000000000000,)"),
    "more than can be counted": npy("(99999999999999999999999,)"),
}


@pytest.mark.parametrize("case", RAW)
def test_bytes_that_are_no_array_are_refused_by_name(case: str) -> None:
    """One client's reply must not end the round for all, whatever NumPy raises for its bytes."""
    round_ = altered(lambda content: raw_vector(RAW[case], 48))
    total = round_.run()
    assert set(total.clients) == set(FIVE) - {VICTIM}
    assert "sealed/vector" in str(round_.failures[VICTIM])


@pytest.mark.parametrize("stage", ["shares", "unmask"])
def test_a_name_with_too_many_digits_is_no_name_of_a_client(stage: str) -> None:
    """Python refuses to read numbers beyond 4300 digits with an error of its own."""
    start = messages.ENCRYPTED if stage == "shares" else messages.OPENED_SELF

    def change(at: str, client: int, record: ConfigRecord) -> ConfigRecord:
        if (at, client) == (stage, VICTIM):
            record[start + "9" * 5000] = bytes(messages.PAIR)
        return record

    round_ = Round(SecAggPlus(), FIVE, on_reply=change)
    total = round_.run()
    assert round_.terms is not None
    assert np.array_equal(total.sealed, expected(round_.settings, round_.terms, FIVE, total.clients))


def test_no_id_has_the_secret_itself_for_a_share() -> None:
    """The share of a holder is the polynomial at its id + 1. At an id that is -1 modulo the prime it is the secret."""
    secret = bytes(range(32))
    with pytest.raises(ValueError, match="holders"):
        shamir.split(secret, 3, [0, 1, shamir.PRIME - 1])


@repeatable(0)
def test_limit_a_server_that_gives_a_client_its_own_keys_reads_both_secrets() -> None:
    """Nobody vouches for public keys: a client cannot tell those of its neighbours from a server's, which then reads
    the shares that were meant for them. Against such a server only keys help that clients know from elsewhere. Should
    they ever, this test is to be turned round.
    """
    ids, tally = (0, 1, 2, 3, 4), Tally()
    client = Party(SecAggPlus(), terms_of(5), 2, tally.refused)
    reply = client.answer("keys", messages.KeysQuery(4, ids).record())
    assert reply is not None
    near, own = (0, 1, 3, 4), [(new_pair(), new_pair()) for _ in range(4)]
    keys = {one: (cipher.public, mask.public) for one, (cipher, mask) in zip(near, own, strict=True)}
    cipher_keys, mask_keys = zip(*keys.values(), strict=True)
    held = messages.KeysReply.read(reply)
    keys[2] = (held.cipher, held.mask)
    record = client.answer("shares", messages.SharesQuery(4, ids, near, cipher_keys, mask_keys, 3, 4).record())
    assert record is not None, tally.refused
    dealt, shares = messages.SharesReply.read(record).encrypted, {}
    for one, (cipher, _) in zip(near, own, strict=True):
        key = share_key(cipher.private, held.cipher, one, 2, Context(77, 4, ids))
        shares[one] = decrypt(key, dealt[one], messages.share_header(77, 4, 2, one, keys))
    combine = shamir.Reconstructor(3).combine
    assert combine({one: pair[: shamir.SHARE] for one, pair in shares.items()}) == client.memory["seed"]
    assert combine({one: pair[shamir.SHARE :] for one, pair in shares.items()}) == client.memory["mask_private"]


@repeatable(0)
def test_a_client_that_lost_its_memory_refuses_the_rest_of_the_round() -> None:
    tally = Tally()
    client = Party(SecAggPlus(), terms_of(5), 2, tally.refused)
    assert client.answer("keys", messages.KeysQuery(4, (0, 1, 2, 3, 4)).record()) is not None
    client.forget()
    for stage in ("shares", "unmask"):
        assert client.answer(stage, ConfigRecord({ROUND: 4})) is None
    first, second = tally.refused
    assert "holds nothing of this round" in first and "is over for this client" in second
