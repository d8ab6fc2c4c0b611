"""Who is left decides whether a sum is opened, never what is in it: orders, thresholds, 30 % drops at every stage."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from flwr.app import ConfigRecord
from secagg.driving import TRAIN, Round, clients_with, expected, outcome

from fedsim.secagg.ideal import Ideal
from fedsim.secagg.plus import SecAggPlus

STAGES = ("keys", "shares", TRAIN, "unmask")

SPARSE = SecAggPlus(corrupt=0.0, dropout=0.0, neighbours=4, threshold=3)
"""Of eight clients each has four neighbours: for more drops than are declared, so that many rounds close."""


def in_turn(orders: list[tuple[int, ...]]) -> Callable[[list[int]], list[int]]:
    """Another order at every stage."""
    waiting = list(orders)
    return lambda clients: [one for one in waiting.pop() if one in clients]


def test_every_order_of_arrival_makes_the_same_bits() -> None:
    """Of four clients, all 24 orders at every stage, another at each; one leaves after the shares."""
    contributions, sums = clients_with(4), set()
    orders = list(permutations(contributions))
    right = None
    for place in range(len(orders)):
        stages = [orders[(place * step + step) % len(orders)] for step in (1, 5, 7, 11)]
        round_ = Round(SecAggPlus(), contributions, drops={TRAIN: {6}}, order=in_turn(stages))
        total = round_.run()
        assert round_.terms is not None and total.clients == (0, 3, 9)
        right = expected(round_.settings, round_.terms, contributions, total.clients)
        sums.add(total.sealed.tobytes())
    assert right is not None and sums == {right.tobytes()}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("more", "ends"), [(-1, "closed"), (0, "exact"), (1, "exact")])
def test_survivors_around_the_threshold(stage: str, more: int, ends: str) -> None:
    """t - 1, t and t + 1 clients are left from a stage on: eight in all, t = 5."""
    contributions = clients_with(8)
    threshold = SecAggPlus().parameters(8).threshold
    assert threshold == SecAggPlus().parameters(8).min_survivors == 5
    for seed in range(3):
        left = set(random.Random(f"{stage} {more} {seed}").sample(list(contributions), threshold + more))
        round_ = Round(SecAggPlus(), contributions, drops={stage: set(contributions) - left})
        assert outcome(round_) == ends
        assert not round_.failures


@pytest.mark.parametrize("stage", ["shares", TRAIN, "unmask"])
@pytest.mark.parametrize(("more", "ends"), [(-1, "closed"), (0, "exact"), (1, "exact")])
def test_holders_around_the_threshold_where_the_graph_is_not_full(stage: str, more: int, ends: str) -> None:
    """Of one client t - 1, t and t + 1 holders are left from a stage on, itself among them: five of nine clients hold
    its shares, t = 3. With too few before it sends a vector, it has to leave as well, and the others may go on.
    """
    settings = SecAggPlus(corrupt=0.0, dropout=0.0, neighbours=4, threshold=3, min_survivors=2)
    contributions, lonely = clients_with(9), 12
    dropped: set[int] = set()

    def leave(at: str, client: int, record: ConfigRecord) -> None:
        if (at, client) == (stage, lonely):
            near = sorted(set(record["neighbours" if stage == "shares" else "survivors"]) - {lonely})  # type: ignore[arg-type]
            dropped.update(near[: len(near) + 1 - settings.threshold - more])  # type: ignore[operator]

    def lonely_first(clients: list[int]) -> list[int]:
        return sorted(clients, key=lambda one: one != lonely)

    round_ = Round(settings, contributions, drops={stage: dropped}, on_query=leave, order=lonely_first)  # type: ignore[arg-type]
    found = outcome(round_)
    assert len(dropped) == 2 - more and lonely not in dropped
    if (stage, more) == ("shares", -1):
        assert lonely not in round_.sealed
    else:
        assert found == ends and lonely in round_.sealed


@pytest.mark.parametrize("settings", [SecAggPlus(), SPARSE], ids=["full", "sparse"])
def test_thirty_percent_leave_at_each_stage_twenty_times(settings: SecAggPlus) -> None:
    """Each client with probability 0.3, at each of the stages, and at any: all exact or closed, none wrong."""
    contributions, found = clients_with(8), {}
    for stage in (*STAGES, "any"):
        rng, ends = random.Random(f"thirty {stage}"), Counter[str]()
        for _ in range(20):
            drops: dict[str, set[int]] = {one: set() for one in STAGES}
            for client in contributions:
                if rng.random() < 0.3:
                    drops[rng.choice(STAGES) if stage == "any" else stage].add(client)
            ends[outcome(Round(settings, contributions, drops=drops))] += 1
        found[stage] = ends
    print(*(f"{stage}: survived {ends['exact']} of {ends.total()}" for stage, ends in found.items()), sep="\n")
    assert sum(ends["exact"] + ends["closed"] for ends in found.values()) == 100
    assert sum(ends["exact"] for ends in found.values()) >= (70 if settings is not SPARSE else 20)


def test_who_leaves_after_the_vectors_is_in_the_sum_all_the_same() -> None:
    contributions = clients_with(6)
    total = Round(SecAggPlus(), contributions, drops={"unmask": {3}}).run()
    plain = Round(Ideal(), contributions).run()
    assert 3 in total.clients and np.array_equal(total.sealed, plain.sealed)
