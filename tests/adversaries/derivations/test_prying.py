"""A server that pries at the unmask stage, against the two halves of `secagg+`: refused, or of no use to it."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ConfigRecord
from secagg.driving import Round, clients_with

from fedsim.adversaries.derivations.prying import Prying
from fedsim.secagg import messages
from fedsim.secagg.base import RoundClosed
from fedsim.secagg.plus import SecAggPlus
from fedsim.secagg.shamir import Reconstructor

TARGET = 6


def played(trick: Any, count: int = 9, settings: SecAggPlus | None = None) -> tuple[Round, str | None]:
    """A round of clients 0, 3, 6 ... with a prying server, and why it was closed; None if it was not."""
    prying = Prying(trick)

    def alter(stage: str, client: int, record: ConfigRecord) -> ConfigRecord | None:
        return (
            ConfigRecord(dict(prying.alter_request(4, client, [TARGET], stage, record))) if stage != "train" else None
        )

    made = Round(settings or SecAggPlus(), clients_with(count), on_query=alter)
    try:
        made.run()
    except RoundClosed as error:
        return made, str(error)
    return made, None


def opened(made: Round, client: int) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """What the server holds of a client in the end: shares of its self mask's seed, and of its key, by holder."""
    selves, keys = {}, {}
    for stage, holder, _, reply in made.sent:
        if stage == "unmask":
            read = messages.UnmaskReply.read(reply)
            selves |= {holder: read.selves[client]} if client in read.selves else {}
            keys |= {holder: read.keys[client]} if client in read.keys else {}
    return selves, keys


def refusals(made: Round) -> dict[int, str]:
    return {client: str(error).partition(": ")[2] for client, error in made.failures.items()}


def test_both_shares_are_refused_by_everybody() -> None:
    made, closed = played("both_shares")
    assert refusals(made) == dict.fromkeys(range(0, 27, 3), f"it is asked for both shares of client {TARGET}")
    assert closed is not None and "0 shares of client 0's secret are left" in closed
    assert opened(made, TARGET) == ({}, {})


def test_a_feigned_dropout_is_refused_by_its_victim_and_opens_one_secret_alone() -> None:
    """The key, without which nothing is lost: the self mask is still on the vector, and nobody opens that."""
    made, closed = played("fake_dropout")
    assert refusals(made) == {TARGET: "it is told that it dropped out, but it is being asked"}
    selves, keys = opened(made, TARGET)
    assert (len(selves), len(keys)) == (0, 8)
    assert closed is not None and f"shares of client {TARGET}'s secret are left" in closed
    threshold = SecAggPlus().parameters(9).threshold
    assert len(Reconstructor(threshold).combine(keys)) == 32, "the key can be had, and is of no use alone"


@pytest.mark.parametrize("count", range(4, 14))
def test_a_split_view_never_opens_both_secrets_with_a_threshold_against_malicious_servers(count: int) -> None:
    settings = SecAggPlus(dropout=0.2)
    made, closed = played("split_view", count, settings)
    assert not made.failures, "no client can tell"
    selves, keys = opened(made, TARGET)
    threshold = settings.parameters(count).threshold
    assert len(selves) + len(keys) == count, "everybody has given one share, and nobody both"
    assert abs(len(selves) - len(keys)) <= 2, "about as many of either"
    assert min(len(selves), len(keys)) < threshold
    # Of a tenth of them, who work with the server, it has both.
    assert count + count // 10 < 2 * threshold
    if len(selves) < threshold:
        assert closed is not None and f"client {TARGET}'s secret are left" in closed
    else:  # with one share more, as an honest server would have: the sum, and nothing but the sum
        assert closed is None


def test_with_a_threshold_against_curious_servers_a_split_view_opens_both() -> None:
    """The reason for the larger threshold: a server that says different things to different clients."""
    settings = SecAggPlus(server="honest_but_curious", threshold=4)
    made, _ = played("split_view", 9, settings)
    selves, keys = opened(made, TARGET)
    assert len(selves) >= 4 and len(keys) >= 4
    reconstructor = Reconstructor(4)
    seed, private = reconstructor.combine(selves), reconstructor.combine(keys)
    query = next(reply for stage, client, _, reply in made.sent if (stage, client) == ("shares", TARGET))
    bound = messages.SharesReply.read(query).commitment
    assert messages.commitment(made.terms.run, made.round, TARGET, seed) == bound  # type: ignore[union-attr]
    from fedsim.secagg.pairing import public_of

    reply = next(reply for stage, client, _, reply in made.sent if (stage, client) == ("keys", TARGET))
    assert public_of(private) == messages.KeysReply.read(reply).mask


def test_an_isolated_client_refuses_and_so_do_those_that_are_said_to_be_gone() -> None:
    made, closed = played("isolate")
    said = refusals(made)
    assert said.pop(TARGET).startswith("too few survivors: 1, and ")
    assert said == {
        client: "it is told that it dropped out, but it is being asked"
        for client in range(0, 27, 3)
        if client != TARGET
    }
    assert closed is not None
    assert opened(made, TARGET) == ({}, {})


def test_other_stages_and_clients_without_a_share_of_the_target_are_asked_honestly() -> None:
    query = {"round": 1, "survivors": [0, 1, 2], "dropped": [3], "total": 3}
    for trick in ("both_shares", "fake_dropout", "split_view", "isolate"):
        prying = Prying(trick)  # type: ignore[arg-type]
        assert prying.alter_request(1, 0, [1], "shares", query) == query
        assert prying.alter_request(1, 0, [9], "unmask", query) == query
        assert prying.alter_request(1, 0, [1], "unmask", query) is not query
        assert query == {"round": 1, "survivors": [0, 1, 2], "dropped": [3], "total": 3}


def test_what_is_said_instead() -> None:
    query = {"round": 1, "survivors": [0, 1, 2], "dropped": [3], "total": 3}

    def said(trick: Any, client: int, round_: int = 1, targets: tuple[int, ...] = (1,)) -> tuple[Any, Any, Any]:
        found = Prying(trick).alter_request(round_, client, targets, "unmask", query)
        return found["survivors"], found["dropped"], found["total"]

    assert said("both_shares", 0) == ([0, 1, 2], [1, 3], 3)
    assert said("fake_dropout", 0) == said("fake_dropout", 1) == ([0, 2], [1, 3], 2)
    assert said("isolate", 2) == ([1], [0, 2, 3], 1)
    assert [said("split_view", client)[2] for client in (0, 1, 2, 3)] == [3, 3, 3, 2]
    assert said("fake_dropout", 0, 2, (2, 3)) == ([0, 1], [2, 3], 2), "the first target is meant"


def test_nothing_is_derived() -> None:
    found = Prying().derive([])
    assert not found.observations and "'both_shares' gives no single update" in found.notes[0]
    assert (Prying().gives, Prying().powers) == (frozenset(), {"alter_requests"})
