"""What a client of `ckks` gives away, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord

pytest.importorskip("tenseal")

from encrypted_rounds import ROUND, SETTINGS, Federation, contribution, plain_mean

import fedsim.grids.flower_internals as flower
from fedsim.errors import ProtocolError
from fedsim.secagg.base import SEALED, Refused
from fedsim.secagg.ciphertexts import SecretContext, covered
from fedsim.secagg.dealing import Members, Sum


def trained() -> Federation:
    federation = Federation()
    federation.train()
    return federation


def the_query(federation: Federation) -> ConfigRecord:
    """That the server sends to have the sum decrypted."""
    federation.server.open(federation.ask)
    (query,) = (query for _, stage, query, _ in federation.seen if stage == "decrypt")
    return query


def test_nothing_but_ciphertexts_leaves_a_client() -> None:
    content = trained().sealed[1]
    assert list(content) == [SEALED]
    (value,) = flower.tensors_in(content, SEALED).values()
    assert value.dtype == torch.uint8
    counts = np.bincount(value.numpy(), minlength=256)[16:]  # every eighth byte is the highest of 60 bits, below 16
    assert counts.std() < 1.3 * np.sqrt(counts.mean())


def test_the_same_update_encrypted_twice_looks_different() -> None:
    federation = Federation()
    along = federation.server.prepare(federation.ask)
    memory = federation.memories[1]
    first = flower.tensors_in(federation.seal(1, along[1]), SEALED)["ciphertext"]
    federation.memories[1] = memory
    second = flower.tensors_in(federation.seal(1, along[1]), SEALED)["ciphertext"]
    assert (first[:60000] == second[:60000]).double().mean() < 0.05


def test_the_round_key_is_readable_for_its_client_alone() -> None:
    federation = Federation()
    along = federation.server.prepare(federation.ask)
    other = along[2]
    assert other is not None
    stolen = ConfigRecord({**other, "encrypted/1": other["encrypted/2"]})
    with pytest.raises(Refused, match="was changed on its way"):
        federation.seal(1, stolen)


def test_the_key_of_another_round_is_refused() -> None:
    federation = Federation()
    along = federation.server.prepare(federation.ask)
    with pytest.raises(Refused, match=f"asked in round {ROUND + 1}"):
        federation.seal(1, ConfigRecord({**along[1], "round": ROUND + 1}))  # type: ignore[dict-item]


def test_a_client_that_was_dealt_no_key_refuses_to_train() -> None:
    with pytest.raises(Refused, match="dealt no key"):
        Federation().seal(1, None)


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "Inf"), (3e5, "3")])
def test_values_that_cannot_be_summed_are_named(value: float, word: str) -> None:
    federation = Federation()
    along = federation.server.prepare(federation.ask)
    what = contribution(0)
    what.update["bias"][3] = value
    with pytest.raises(ProtocolError, match=f"update/bias holds {word}"):
        federation.half(1).seal(what, along[1], bytes(32))


def test_a_key_is_given_and_an_update_sent_once_in_a_round() -> None:
    federation = trained()
    with pytest.raises(Refused, match="client 0: has sent its update"):
        federation.seal(0, None)
    with pytest.raises(Refused, match="client 0: has given its key"):
        federation.answer(0, "keys", ConfigRecord({"round": ROUND}))


def test_a_dealer_refuses_a_second_time_too_few_and_another_key_in_its_name() -> None:
    federation = Federation()
    replies = dict(federation.ask("keys", {client: ConfigRecord({"round": ROUND}) for client in range(4)}))
    publics = {client: bytes(reply["keys/cipher"]) for client, reply in replies.items()}  # type: ignore[arg-type]
    for members, word in (
        ({**publics, 0: bytes(range(32))}, "with the key that it gave"),
        ({client: publics[client] for client in (0, 1)}, "only 2 clients take part"),
        (dict.fromkeys((0, 1, 2), publics[1]), "each another"),
    ):
        with pytest.raises(Refused, match=word):
            federation.answer(0, "shares", Members(ROUND, members).record())
    federation.answer(0, "shares", Members(ROUND, publics).record())
    with pytest.raises(Refused, match="one key in a round"):
        federation.answer(0, "shares", Members(ROUND, publics).record())


def test_a_sum_is_decrypted_once() -> None:
    federation = trained()
    query = the_query(federation)
    with pytest.raises(Refused, match="client 0: decrypts once"):
        federation.answer(0, "decrypt", query)
    assert not federation.memories[0]


def test_sums_of_too_few_of_others_and_of_another_round_are_refused() -> None:
    federation = trained()
    query = the_query(federation)
    single = bytes(flower.tensors_in(federation.sealed[1], SEALED)["ciphertext"].numpy())
    for change, word in (
        ({"clients": [1, 2]}, "only 2 clients are in the sum"),
        ({"clients": [0, 2, 3]}, "its own update is not in the sum"),
        ({"clients": [1, 2, 3]}, "holds the updates of 4"),
        ({"clients": [1, 2, 3], "ciphertext": single}, "holds the updates of 1"),
        ({"round": ROUND - 1}, "asked in round 3"),
        ({"ciphertext": b"\1\2"}, "cut short"),
    ):
        with pytest.raises(Refused, match=word):
            federation.answer(1, "decrypt", ConfigRecord({**query, **change}))  # type: ignore[dict-item]
    assert federation.answer(1, "decrypt", query)


def test_the_sum_under_the_key_of_another_round_is_refused() -> None:
    query = the_query(trained())
    with pytest.raises(Refused, match="nothing that it could read"):
        trained().answer(1, "decrypt", query)


def test_a_key_of_other_parameters_is_refused() -> None:
    federation = Federation()
    federation.server.prepare(federation.ask)
    key = federation.memories[0]["key"]
    other = dataclasses.replace(SETTINGS, scale_bits=41)
    with pytest.raises(ProtocolError, match="other parameters"):
        SecretContext(other, key)  # type: ignore[arg-type]


def test_what_is_told_of_a_sum_is_as_noisy_as_the_settings_say() -> None:
    """The noise, and not the ciphertext's error, which would tell the secret key."""
    federation = Federation()
    total = federation.run()
    error = (total.update["weight"] - plain_mean(range(4), "weight")) * total.examples / 400
    assert error.std().item() == pytest.approx(SETTINGS.noise(4), rel=0.05)
    assert abs(error.mean().item()) < 4 * SETTINGS.noise(4) / 60


def test_the_noise_is_gaussian_and_fresh() -> None:
    values = np.zeros(40001)
    first, second = covered(values, 0.5), covered(values, 0.5)
    assert first.std() == pytest.approx(0.5, rel=0.02)
    assert (first**4).mean() == pytest.approx(3 * 0.5**4, rel=0.1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert (first == np.rint(first * 16) / 16).all()


@pytest.mark.parametrize("bad", [2**63, -(2**63) - 1, True, "1"])
def test_numbers_that_no_message_carries_are_refused_as_under_secagg(bad: Any) -> None:
    """Both modes read their messages by the same rules."""
    with pytest.raises(ProtocolError, match="is not a whole number"):
        Sum.read({"round": bad, "clients": [0], "ciphertext": b""})  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="is not a list of whole numbers"):
        Sum.read({"round": 1, "clients": [0, bad], "ciphertext": b""})  # type: ignore[arg-type]
