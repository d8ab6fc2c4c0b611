"""n - 1 clients against the last: what is left of the sum is its update, to the rounding of the integers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from summing import bound, codec_for, colluding, contribution, summed

from fedsim.adversaries.derivations.collusion import Collusion
from fedsim.secagg.base import Contribution


def against(given: dict[int, Contribution], last: int, bits: int = 32, **more: object):  # type: ignore[no-untyped-def]
    codec = codec_for(len(given), bits)
    tensors, facts = colluding(given, [client for client in given if client != last])
    return codec, summed(given, codec, tensors=tensors, colluders=facts, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_last_clients_update_is_recovered_to_the_rounding(count: int, bits: int) -> None:
    given = {client: contribution(client, examples=1 + client % 7) for client in range(count)}
    for last in (0, count - 1):
        codec, seen = against(given, last, bits)
        (one,) = Collusion().derive([seen]).observations
        assert (one.client, one.round, one.facts["num_examples"]) == (last, 1, given[last].examples)
        for name, value in given[last].update.items():
            found = one.tensors[f"update/{name}"]
            assert found.dtype == torch.float32
            assert ((found - value).double().abs() <= bound(value, codec.scale)).all()
        for name, value in given[last].statistics.items():
            error = (one.tensors[f"sent_buffers/{name}"] - value).double().abs()
            assert (error <= bound(value, codec.statistics_scale)).all()


def test_in_float64_nothing_is_lost_but_the_clients_own_rounding() -> None:
    """The recovered integers are the client's own, exactly: not near it, as with the means in float32."""
    given = {client: contribution(client, examples=7) for client in range(6)}
    codec, seen = against(given, 2)
    (one,) = Collusion().derive([seen]).observations
    for name, value in given[2].update.items():
        exact = (value.double() * codec.scale).round() / codec.scale
        assert torch.equal(one.tensors[f"update/{name}"], exact.float())


def test_a_sum_in_float32_gives_it_less_exactly() -> None:
    given = {client: contribution(client) for client in range(4)}
    codec, seen = against(given, 1)
    rounded = {name: value for name, value in seen.tensors.items() if not name.startswith("sum/")}
    (one,) = Collusion().derive([replace(seen, tensors=rounded)]).observations
    for name, value in given[1].update.items():
        mean = seen.tensors[f"update/{name}"]
        # Half a unit in the last place of the mean, times total over own weight.
        allowed = bound(value, codec.scale) + mean.abs() * 2.0**-24 * 4 + 1 / codec.scale
        assert ((one.tensors[f"update/{name}"] - value).double().abs() <= allowed).all()


def test_coordinates_that_the_codec_cut_off_are_cut_off_when_they_are_subtracted() -> None:
    given = {0: contribution(0, size=20.0), 1: contribution(1), 2: contribution(2, size=20.0)}
    assert max(float(value.abs().max()) for value in given[0].update.values()) > 4
    codec, seen = against(given, 1)
    (one,) = Collusion().derive([seen]).observations
    for name, value in given[1].update.items():
        assert ((one.tensors[f"update/{name}"] - value).double().abs() <= bound(value, codec.scale)).all()


def test_a_colluder_weighs_no_more_than_anybody_may() -> None:
    given = {0: contribution(0, examples=100), 1: contribution(1, examples=3)}
    codec, seen = against(given, 1)
    (one,) = Collusion().derive([seen]).observations
    assert one.facts["num_examples"] == 3
    assert ((one.tensors["update/w"] - given[1].update["w"]).abs() <= bound(given[1].update["w"], codec.scale)).all()


def test_with_two_honest_clients_left_there_is_nothing_and_the_note_says_who() -> None:
    given = {client: contribution(client) for client in range(4)}
    tensors, facts = colluding(given, [0, 3])
    found = Collusion().derive([summed(given, codec_for(4), tensors=tensors, colluders=facts)])
    assert not found.observations
    assert found.notes == ("round 1: clients 1 and 2 are left besides the colluders: only their sum is known",)


def test_a_colluder_that_is_not_in_the_sum_is_not_subtracted() -> None:
    """It dropped out after it had made its update."""
    given = {client: contribution(client) for client in range(4)}
    tensors, facts = colluding(given, [0, 1, 3])
    there = {client: given[client] for client in (0, 2, 3)}
    codec = codec_for(4)
    (one,) = Collusion().derive([summed(there, codec, tensors=tensors, colluders=facts)]).observations
    assert one.client == 2
    assert ((one.tensors["update/w"] - given[2].update["w"]).abs() <= bound(given[2].update["w"], codec.scale)).all()
    assert one.facts["derived"] == {"by": "collusion", "rounds": [1], "colluders": [0, 3]}


def test_when_all_have_colluded_nothing_is_left_and_without_a_sum_there_is_nothing() -> None:
    given = {client: contribution(client) for client in range(2)}
    tensors, facts = colluding(given, [0, 1])
    found = Collusion().derive([summed(given, codec_for(2), tensors=tensors, colluders=facts)])
    assert (found.observations, found.notes) == ((), ("round 1: all of the sum's clients are colluders",))
    assert Collusion().derive([]).notes == ("no sum of a round was shown",)


def test_labels_are_cut_out_where_the_colluders_counts_tell_and_left_out_where_not() -> None:
    given = {client: contribution(client, examples=client + 1) for client in range(3)}
    labels = torch.tensor([0, 1, 1, 2, 2, 2])
    tensors, facts = colluding(given, [0, 2])
    seen = summed(given, codec_for(3), tensors={**tensors, "known/labels": labels}, colluders=facts)
    (one,) = Collusion().derive([seen]).observations
    assert one.tensors["known/labels"].tolist() == [1, 1]
    assert one.facts["granted"] == ["global_model", "labels", "num_examples", "update"]
    # As under Poisson sampling, where the count is the expected one.
    seen = summed(given, codec_for(3), tensors={**tensors, "known/labels": labels[:5]}, colluders=facts)
    (one,) = Collusion().derive([seen]).observations
    assert "known/labels" not in one.tensors
    assert "labels" not in one.facts["granted"]


def test_the_observation_holds_one_clients_facts_and_nothing_of_the_colluders() -> None:
    given = {client: contribution(client, examples=4, steps=1 + 2 * client) for client in range(3)}
    _, seen = against(given, 2, algorithm="fedavg", learning_rate=0.1, classes=3)
    (one,) = Collusion().derive([seen]).observations
    assert one.facts["num_steps"] == 5  # (1 + 3 + 5) / 3 = 3 in the mean
    assert {name.split("/")[0] for name in one.tensors} == {"model", "update", "sent_buffers"}
    assert not {"clients", "colluders", "bytes_up", "bytes_down"} & set(one.facts)
    assert one.facts["learning_rate"] == 0.1
    assert seen.facts["clients"] == [0, 1, 2], "what was shown is as it was"


def test_without_integers_a_plain_sum_is_subtracted_plainly() -> None:
    given = {client: contribution(client) for client in range(3)}
    tensors, facts = colluding(given, [0, 1])
    seen = summed(given, codec_for(3), tensors=tensors, colluders=facts)
    for name in ("w", "b"):
        tensors[f"sum/update/{name}"] = sum(one.update[name].double() for one in given.values()) / 3  # type: ignore[assignment]
    seen = replace(seen, tensors={**seen.tensors, **tensors}, facts={**seen.facts, "secure_aggregation": None})
    (one,) = Collusion().derive([seen]).observations
    torch.testing.assert_close(one.tensors["update/w"], given[2].update["w"], rtol=1e-6, atol=1e-7)
