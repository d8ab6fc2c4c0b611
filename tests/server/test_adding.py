"""Whole rounds of `ckks`: with everybody, and with clients that leave at every stage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

pytest.importorskip("tenseal")

from encrypted_rounds import SETTINGS, Federation, plain_mean, terms

import fedsim.grids.flower_internals as flower
from fedsim.errors import ProtocolError
from fedsim.secagg.base import SEALED, RoundClosed, Total

WEIGHTS = (20, 55, 100, 100)


def check(total: Total, clients: tuple[int, ...], drawn: int = 4) -> None:
    examples = sum(WEIGHTS[client] for client in clients)
    assert total.clients == clients
    assert total.examples == examples
    assert total.steps == sum(WEIGHTS[client] * (client + 1) for client in clients) / examples
    assert (total.error, total.sealed, total.clipped) == (None, None, 0)
    bound = 10 * SETTINGS.noise(drawn) * drawn * 100 / examples
    assert bound < 1e-5
    for part, tensors in (("update", total.update), ("statistics", total.statistics)):
        for name, value in tensors.items():
            assert value.dtype == torch.float64
            assert (value - plain_mean(clients, name, part)).abs().max() < bound


def test_the_mean_of_all() -> None:
    check(Federation().run(), (0, 1, 2, 3))


@pytest.mark.parametrize("stage", ["keys", "shares", "train"])
@pytest.mark.parametrize("client", [0, 2])
def test_without_a_client_that_leaves(client: int, stage: str) -> None:
    """Client 0 would deal; only the dealer is asked at `shares`, so that another one leaves later."""
    total = Federation(gone={(client, stage)}).run()
    there = stage == "shares" and client == 2
    check(total, tuple(one for one in range(4) if there or one != client))


def test_who_vanishes_when_asked_to_decrypt_is_in_the_sum_and_the_next_one_decrypts() -> None:
    federation = Federation(gone={(0, "decrypt"), (1, "decrypt")})
    check(federation.run(), (0, 1, 2, 3))
    assert [client for client, stage, *_ in federation.seen if stage == "decrypt"] == [2]


def test_one_client_alone_is_asked_to_decrypt() -> None:
    federation = Federation()
    federation.run()
    assert [client for client, stage, *_ in federation.seen if stage == "decrypt"] == [0]
    assert [client for client, stage, *_ in federation.seen if stage == "shares"] == [0]


@pytest.mark.parametrize("stage", ["keys", "train"])
def test_too_few_close_the_round(stage: str) -> None:
    federation = Federation(gone={(0, stage), (3, stage)})
    with pytest.raises(RoundClosed, match=r"2 of 4 clients .*, and 3 are needed"):
        federation.run()
    assert "decrypt" not in [stage for _, stage, *_ in federation.seen]


def test_the_round_is_closed_when_nobody_deals() -> None:
    with pytest.raises(RoundClosed, match="2 of 4 clients gave keys"):
        Federation(gone={(0, "shares"), (1, "shares")}).run()


def test_the_round_is_closed_when_nobody_decrypts() -> None:
    with pytest.raises(RoundClosed, match="none of the 4 clients"):
        Federation(gone={(client, "decrypt") for client in range(4)}).run()


@pytest.mark.parametrize(
    ("entry", "value", "word"),
    [
        (-36, 3.0, "it says 3 clients with 275 examples"),
        (-22, 2.0, "it says 4 clients with 787 examples"),
        (-24, 2.5, "no sum at all"),
        (-24, -1.0, "no sum at all"),
        (0, float("nan"), "no sum at all"),
    ],
)
def test_a_client_that_says_what_cannot_be_closes_the_round(entry: int, value: float, word: str) -> None:
    def lie(client: int, stage: str, reply: ConfigRecord) -> ConfigRecord:
        if stage != "decrypt":
            return reply
        values = np.frombuffer(reply["values"], np.float64).copy()  # type: ignore[arg-type]
        values[entry] = value
        return ConfigRecord({**reply, "values": values.tobytes()})

    with pytest.raises(RoundClosed, match=word):
        Federation(change_reply=lie).run()


def test_the_order_of_arrival_changes_no_bit_of_the_sum() -> None:
    federation = Federation()
    along = federation.server.prepare(federation.ask)
    sealed = {client: federation.seal(client, along[client]) for client in along}
    outcomes = []
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        server = Federation().server
        server._expected = frozenset(range(4))
        for client in order:
            server.take(client, sealed[client])
        assert server._sum is not None
        outcomes.append([vector.serialize() for vector in server._sum])
    assert outcomes[0] == outcomes[1]


def test_what_is_no_update_of_the_round_is_refused_and_the_rest_is_summed() -> None:
    federation = Federation()
    along = federation.server.prepare(federation.ask)
    sealed = {client: federation.seal(client, along[client]) for client in (0, 1, 2)}
    whole = flower.tensors_in(sealed[0], SEALED)["ciphertext"]
    half = int.from_bytes(bytes(whole[:4].numpy()), "little") + 4

    def of(values: torch.Tensor) -> RecordDict:
        return RecordDict({SEALED: flower.to_record({"ciphertext": values})})

    garbage = whole.clone()
    garbage[4:40] = 255
    for content, word in (
        (RecordDict(), "is missing"),
        (RecordDict({SEALED: ArrayRecord()}), "is missing"),
        (of(whole.float()), "not a row of bytes"),
        (of(whole[:-9]), "cut short"),
        (of(whole[:half]), "1 ciphertexts instead of 2"),
        (of(torch.cat([whole[half:], whole[:half]])), "ciphertext 0 is not of the form"),
        (of(garbage), "cannot be read"),
    ):
        with pytest.raises(ProtocolError, match=word):
            federation.server.take(3, content)
    for client in (2, 0, 1):
        federation.server.take(client, sealed[client])
    with pytest.raises(ProtocolError, match="client 1 sent a second update"):
        federation.server.take(1, sealed[1])
    with pytest.raises(ProtocolError, match="client 9 was not to send"):
        federation.server.take(9, sealed[1])
    check(federation.server.open(federation.ask), (0, 1, 2))
    with pytest.raises(ProtocolError, match="not any more"):
        federation.server.take(3, sealed[1])


def test_an_update_of_another_scale_is_refused() -> None:
    import dataclasses

    other = Federation(dataclasses.replace(SETTINGS, scale_bits=41))
    content = other.seal(0, other.server.prepare(other.ask)[0])
    federation = Federation()
    federation.server.prepare(federation.ask)
    with pytest.raises(ProtocolError, match="ciphertext 0 is not of the form"):
        federation.server.take(0, content)


def test_the_server_never_has_the_key() -> None:
    federation = Federation()
    federation.run()
    assert not federation.server._context.context.has_secret_key()
    for vector in federation.server._sum or ():
        with pytest.raises(ValueError, match="secret"):
            vector.decrypt()


def test_many_clients_with_few_examples_are_counted_exactly() -> None:
    """Where noise is large beside one example: clients that could have a million have a few."""
    federation = Federation(terms=terms(clients=9, most_examples=1_000_000))
    total = federation.run()
    assert total.examples == sum((20, 55, 130, 100)[client % 4] for client in range(9))
    assert SETTINGS.noise(9) * 9 * 1_000_000 > 1
