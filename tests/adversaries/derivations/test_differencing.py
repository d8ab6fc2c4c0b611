"""Rounds with different clients: who is determined by whom, and that the combination is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from summing import MODEL, bound, codec_for, contribution, summed

from fedsim.adversaries.base import Observation
from fedsim.adversaries.derivations.differencing import Differencing
from fedsim.adversaries.derivations.participation import Participation, coefficients, together


def rounds_of(*rounds: set[int], examples: Any = lambda client: 4, **more: Any) -> list[Observation]:
    """Observations of sums of the same updates in every round."""
    codec = codec_for(max(map(len, rounds)))
    return [
        summed({client: contribution(client, examples(client)) for client in sorted(clients)}, codec, number, **more)
        for number, clients in enumerate(rounds, start=1)
    ]


def check(one: Observation, examples: int, scale: float) -> None:
    truth = contribution(one.client, examples)
    assert one.facts["num_examples"] == examples
    for name, value in truth.update.items():
        assert ((one.tensors[f"update/{name}"] - value).double().abs() <= bound(value, scale)).all()
    for name, value in truth.statistics.items():
        torch.testing.assert_close(one.tensors[f"sent_buffers/{name}"], value, rtol=1e-5, atol=1e-5)


def test_two_rounds_that_differ_by_one_client_give_it() -> None:
    seen = rounds_of({0, 1, 2, 3}, {0, 1, 3}, examples=lambda client: client + 1)
    found = Differencing().derive(seen)
    (one,) = found.observations
    check(one, 3, codec_for(4).scale)
    assert (one.client, one.round) == (2, 1), "of the last round in which it took part"
    derived = one.facts["derived"]
    assert (derived["by"], derived["rounds"]) == ("differencing", [1, 2])
    assert derived["coefficients"] == pytest.approx([1, -1])
    assert "clients" not in one.facts
    assert found.notes == (
        "client 2 is determined by the sums up to round 2",
        "not determined: clients 0, 1 and 3 always took part together",
    )


def test_not_before_the_round_that_determines_it() -> None:
    rounds = [{0, 1, 2, 3}, {0, 1, 2, 3}, {0, 1}, {1, 2, 3}]
    for upto, clients in ((1, []), (2, []), (3, []), (4, [0, 1])):
        found = Differencing().derive(rounds_of(*rounds[:upto]))
        assert [one.client for one in found.observations] == clients
    assert {note for note in found.notes if "is determined" in note} == {
        "client 0 is determined by the sums up to round 4",
        "client 1 is determined by the sums up to round 4",
    }
    for one in found.observations:
        check(one, 4, codec_for(4).scale)


def test_all_clients_of_a_full_design_are_recovered() -> None:
    everyone = set(range(6))
    rounds = [everyone - {client} for client in sorted(everyone)]
    found = Differencing().derive(rounds_of(*rounds, examples=lambda client: 1 + client))
    assert [one.client for one in found.observations] == sorted(everyone)
    for one in found.observations:
        check(one, 1 + one.client, codec_for(5).scale)
        assert one.round == (6 if one.client != 5 else 5)


def test_a_client_that_is_confounded_is_told_with_whom() -> None:
    # A cycle of pairs of even length: alternate updates can move against one another.
    found = Differencing().derive(rounds_of({0, 1}, {1, 2}, {2, 3}, {3, 0}))
    assert not found.observations
    assert "not determined: client 0 cannot be told apart from clients 1, 2 and 3 by who took part when" in found.notes
    # One of odd length determines all.
    assert len(Differencing().derive(rounds_of({0, 1}, {1, 2}, {2, 0})).observations) == 3


def test_a_model_that_moved_makes_it_an_approximation_and_that_is_said() -> None:
    seen = rounds_of({0, 1, 2}, {0, 1})
    moved = {**seen[1].tensors, "model/w": MODEL["model/w"] + 1e-3}
    seen[1] = Observation(2, 0, "server", moved, seen[1].facts)
    found = Differencing().derive(seen)
    assert len(found.observations) == 1
    assert (
        "client 2: the broadcast model was not the same in all of the rounds 1, 2: its update is an approximation"
        in (found.notes)
    )
    assert not any("approximation" in note for note in Differencing().derive(rounds_of({0, 1, 2}, {0, 1})).notes)
    there_and_back = rounds_of({0, 1, 2}, {0, 1}, {0, 1, 2})
    there_and_back[1] = seen[1]
    assert any("rounds 1, 2, 3: its update is an app" in note for note in Differencing().derive(there_and_back).notes)


def test_weights_that_fit_no_same_updates_are_left_out() -> None:
    """The batch of client 1 grew between rounds, so that the examples of the sums contradict one another."""
    codec = codec_for(3)
    counts = [{0: 4, 1: 4}, {1: 5, 2: 4}, {0: 4, 2: 4}]
    seen = [
        summed({client: contribution(client, examples) for client, examples in given.items()}, codec, number)
        for number, given in enumerate(counts, start=1)
    ]
    found = Differencing().derive(seen)
    assert not found.observations
    said = "so that it cannot have sent the same in all of its rounds; left out"
    assert f"client 0: its weight comes out as 3.500, {said}" in found.notes


def test_labels_are_cut_out_where_all_counts_are_known() -> None:
    labels = {"known/labels": torch.arange(12) // 4}
    seen = rounds_of({0, 1}, {1, 2}, {0, 1, 2})
    seen[2] = Observation(3, 0, "server", {**seen[2].tensors, **labels}, seen[2].facts)
    found = {one.client: one for one in Differencing().derive(seen).observations}
    # Client 1 is not in the way of this: 0 and 2 follow, and 1 from the first round.
    assert {client: one.tensors["known/labels"].tolist() for client, one in found.items()} == {
        client: [client] * 4 for client in range(3)
    }
    few = rounds_of({0, 1, 2}, {1, 2})
    few[0] = Observation(1, 0, "server", {**few[0].tensors, **labels}, few[0].facts)
    (one,) = Differencing().derive(few).observations
    assert "known/labels" not in one.tensors, "nobody knows how many clients 1 and 2 have each"
    few[0] = Observation(1, 0, "server", few[0].tensors, {**few[0].facts, "batch_size": 4})
    (one,) = Differencing().derive(few).observations
    assert one.tensors["known/labels"].tolist() == [0] * 4, "equal batches are known to be equal"


@pytest.mark.parametrize("seed", range(8))
def test_the_exact_test_agrees_with_the_rank_of_the_matrix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.random((int(rng.integers(2, 10)), 8)) < rng.choice([0.3, 0.5, 0.8])
    rounds = [frozenset(np.flatnonzero(row).tolist()) for row in matrix if row.any()]
    known = Participation()
    for clients in rounds:
        known.add(clients)
    whole = np.array([[float(client in one) for client in range(8)] for one in rounds])
    rank = np.linalg.matrix_rank(whole)
    units = np.eye(8)
    wanted = [c for c in range(8) if np.linalg.matrix_rank(np.vstack([whole, units[c]])) == rank and whole[:, c].any()]
    assert known.determined() == wanted
    for client, c in coefficients(rounds, wanted).items():
        np.testing.assert_allclose(np.array(c) @ whole, units[client], atol=1e-8)
    for client in set(known.clients) - set(wanted):
        assert known.confounded(client)


def test_who_was_always_together() -> None:
    rounds = [{0, 1, 2, 5}, {1, 3}, {2, 5, 3}]
    assert together(rounds, [0, 1, 2, 3, 5]) == [[2, 5]]


def test_coefficients_are_those_of_least_norm() -> None:
    (c,) = coefficients([{0, 1}, {0, 1}, {1}, {1}], [0]).values()
    assert c == pytest.approx([0.5, 0.5, -0.5, -0.5])


def test_many_rounds_of_many_clients_are_no_burden() -> None:
    """Exact fractions, but no more than a second or two of them."""
    rng = np.random.default_rng(0)
    known = Participation()
    for _ in range(80):
        known.add(frozenset(rng.choice(40, 20, replace=False).tolist()))
    assert known.determined() == list(range(40))


def test_nothing_is_derived_from_what_is_no_sum() -> None:
    single = summed({1: contribution(1)}, codec_for(2))
    facts = {key: value for key, value in single.facts.items() if key != "clients"}
    found = Differencing().derive([Observation(1, 1, "server", single.tensors, facts)])
    assert (found.observations, found.notes) == ((), ("no sum of a round was shown",))
