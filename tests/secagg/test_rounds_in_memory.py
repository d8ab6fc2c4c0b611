"""Whole rounds: the sums of `ideal` and `secagg+` are the same bits, and are right or withheld whatever is sent."""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib.metadata import entry_points

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from secagg.driving import LAYOUT, TRAIN, Round, clients_with, expected, outcome

from fedsim.clients.masking import PairwiseMasking
from fedsim.clients.plain_sum import PlainMasking
from fedsim.secagg.ideal import Ideal
from fedsim.secagg.keys import new_pair
from fedsim.secagg.pairing import degree_of, public_of
from fedsim.secagg.plus import SecAggPlus
from fedsim.server.plain_sum import PlainUnmasking
from fedsim.server.unmasking import PairwiseUnmasking

SPARSE = SecAggPlus(corrupt=0.05, dropout=0.05)
"""With 52 clients, 14 neighbours each."""


def shuffled(seed: int) -> Callable[[list[int]], list[int]]:
    rng = random.Random(seed)
    return lambda clients: rng.sample(clients, len(clients))


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("count", [4, 5, 9])
def test_ideal_and_secagg_plus_make_the_same_bits(count: int, bits: int) -> None:
    contributions = clients_with(count)
    ideal = Round(Ideal(bits=bits), contributions).run()  # type: ignore[arg-type]
    masked = Round(SecAggPlus(bits=bits), contributions, order=shuffled(count)).run()  # type: ignore[arg-type]
    assert masked.clients == ideal.clients == tuple(contributions)
    assert masked.sealed.dtype == ideal.sealed.dtype == (np.uint32 if bits == 32 else np.uint64)
    assert np.array_equal(masked.sealed, ideal.sealed)
    assert (masked.examples, masked.steps, masked.clipped) == (ideal.examples, ideal.steps, ideal.clipped)
    for part in ("update", "statistics"):
        for name, value in getattr(ideal, part).items():
            assert torch.equal(getattr(masked, part)[name], value)


def test_the_sum_is_the_weighted_mean_of_the_updates() -> None:
    contributions = clients_with(6)
    total = Round(SecAggPlus(), contributions).run()
    weight = sum(one.examples for one in contributions.values())
    assert total.examples == weight and total.error is not None
    for name in LAYOUT.update:
        mean = sum(one.update[name].double() * one.examples for one in contributions.values()) / weight
        assert (total.update[name] - mean).abs().max() <= total.error


def test_on_a_sparse_graph_the_bits_are_the_same() -> None:
    contributions = clients_with(52)
    assert SPARSE.parameters(52).neighbours == 14
    gone = {30, 33}
    masked = Round(SPARSE, contributions, drops={TRAIN: gone}, order=shuffled(1))
    total = masked.run()
    plain = Round(Ideal(), contributions, drops={TRAIN: gone}).run()
    assert total.clients == plain.clients and len(total.clients) == 50
    assert np.array_equal(total.sealed, plain.sealed)


def test_the_order_of_arrival_changes_no_bit() -> None:
    contributions = clients_with(7)
    drops = {"shares": {3}, TRAIN: {9}}
    sums = [Round(SecAggPlus(), contributions, drops=drops, order=shuffled(seed)).run().sealed for seed in range(4)]
    assert all(np.array_equal(one, sums[0]) for one in sums)


@pytest.mark.parametrize("stage", ["keys", "shares", TRAIN, "unmask"])
def test_a_third_leaves_at_a_stage_and_the_sum_is_exact_or_withheld(stage: str) -> None:
    """30 % drops at each stage: never a wrong sum. The threshold allows for them, so that few close the round."""
    rng, contributions, found = random.Random(stage), clients_with(8), []
    for _ in range(10):
        drops = {one for one in contributions if rng.random() < 0.3}
        found.append(outcome(Round(SecAggPlus(), contributions, drops={stage: drops}, order=shuffled(len(drops)))))
    assert found.count("exact") >= 6


def test_whatever_is_changed_on_the_way_the_sum_is_exact_or_withheld() -> None:
    """One entry of one message of a round, but a vector, is changed at random; some clients leave besides."""
    contributions, found = clients_with(5), []
    for seed in range(60):
        rng = random.Random(seed)
        target = (rng.choice(["keys", "shares", TRAIN, "unmask"]), rng.choice(list(contributions)))
        on_query = rng.random() < 0.5

        def change(
            stage: str,
            client: int,
            record: ConfigRecord,
            rng: random.Random = rng,
            target: tuple[str, int] = target,
        ) -> ConfigRecord:
            if (stage, client) == target:
                spoil(record, rng)
            return record

        drops = {rng.choice(["keys", "shares", TRAIN, "unmask"]): {rng.choice(list(contributions))}}
        hooks = {"on_query" if on_query else "on_reply": change}
        found.append(outcome(Round(SecAggPlus(), contributions, drops=drops, **hooks)))  # type: ignore[arg-type]
    assert {"exact", "closed"} == set(found)


def spoil(record: ConfigRecord, rng: random.Random) -> None:
    """Change one entry: a bit, a number, an id."""
    key = rng.choice(sorted(record))
    value = record[key]
    if isinstance(value, bytes) and value:
        changed = bytearray(value)
        changed[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
        record[key] = bytes(changed)
    elif isinstance(value, int):
        record[key] = value + rng.choice((-1, 1))
    elif isinstance(value, list) and value and isinstance(value[0], bytes):
        record[key] = [new_pair().public, *value[1:]]
    elif isinstance(value, list):
        record[key] = value[1:] if rng.random() < 0.5 else [*value, rng.choice((0, 3, 6, 9, 12, 99))]  # type: ignore[list-item]


def test_two_rounds_of_one_client_have_other_masks() -> None:
    contributions = clients_with(4)
    first, second = (Round(SecAggPlus(), contributions, round=number) for number in (1, 2))
    for one in (first, second):
        one.run()
    for client in contributions:
        a, b = (one.sealed[client]["sealed"]["vector"].numpy() for one in (first, second))  # type: ignore[index,union-attr]
        assert (a != b).mean() > 0.95


@pytest.mark.parametrize(("neighbours", "clients", "degree"), [(5, 6, 5), (5, 4, 3), (4, 9, 4), (5, 9, 6), (5, 10, 5)])
def test_degrees_that_a_graph_can_have(neighbours: int, clients: int, degree: int) -> None:
    assert degree_of(neighbours, clients) == degree
    assert degree < clients and (degree % 2 == 0 or clients % 2 == 0)


def test_an_odd_degree_survives_an_odd_number_of_clients() -> None:
    settings = SecAggPlus(corrupt=0.0, dropout=0.1, neighbours=17, server="honest_but_curious")
    contributions = clients_with(52)
    round_ = Round(settings, contributions, drops={"keys": {3}})
    assert outcome(round_) == "exact" and not round_.failures


def test_the_public_key_of_a_private_one() -> None:
    pair = new_pair()
    assert public_of(pair.private) == pair.public


def test_every_half_is_found_by_the_name_of_its_mode() -> None:
    wanted = {
        "secure_aggregations": {"ideal": Ideal, "secagg+": SecAggPlus},
        "maskings": {"ideal": PlainMasking, "secagg+": PairwiseMasking},
        "unmaskings": {"ideal": PlainUnmasking, "secagg+": PairwiseUnmasking},
    }
    for kind, components in wanted.items():
        found = {point.name: point for point in entry_points(group=f"fedsim.{kind}")}
        for name, component in components.items():
            assert found[name].load() is component


def test_what_is_expected_is_added_up_in_another_way() -> None:
    """The yardstick of the other tests: it wraps as a ring does, and follows what is in the contributions."""
    contributions = clients_with(4)
    round_ = Round(Ideal(), contributions)
    assert round_.terms is not None
    vectors = [Ideal().codec(round_.terms).encode(one).view(np.int32).astype(object) for one in contributions.values()]
    right = expected(Ideal(), round_.terms, contributions, contributions)
    assert np.array_equal(right.view(np.int32).astype(object), sum(vectors))
    assert not np.array_equal(right, expected(Ideal(), round_.terms, contributions, list(contributions)[:3]))
