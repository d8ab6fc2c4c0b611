"""The graph of neighbours: mutual, regular, connected, and in another order every time."""

from __future__ import annotations

import random

import pytest

from fedsim.secagg.graph import neighbours


@pytest.mark.parametrize(("count", "degree"), [(6, 2), (7, 2), (8, 3), (10, 7), (50, 12), (101, 36), (100, 37), (9, 6)])
def test_everybody_has_so_many_and_is_one_of_theirs(count: int, degree: int) -> None:
    clients = random.sample(range(1000), count)
    found = neighbours(clients, degree)
    assert list(found) == clients
    for client, others in found.items():
        assert len(others) == len(set(others)) == degree
        assert others == tuple(sorted(others)) and client not in others
        assert all(client in found[other] for other in others)


@pytest.mark.parametrize("degree", [4, 5, 99])
def test_the_full_graph(degree: int) -> None:
    clients = [9, 2, 4, 0, 7]
    assert neighbours(clients, degree) == {
        client: tuple(sorted(other for other in clients if other != client)) for client in clients
    }


@pytest.mark.parametrize("degree", [2, 3, 6])
def test_it_takes_as_many_losses_as_it_has_degrees_to_part_it(degree: int) -> None:
    """A Harary graph: whichever degree - 1 clients leave, the others stay connected."""
    chance = random.Random(5)
    for _ in range(200):
        found = neighbours(range(14), degree)
        left = set(range(14)) - set(chance.sample(range(14), degree - 1))
        start = next(iter(left))
        seen, ahead = {start}, [start]
        while ahead:
            fresh = set(found[ahead.pop()]) & left - seen
            seen |= fresh
            ahead += fresh
        assert seen == left


def test_every_pair_is_as_likely_as_any_other() -> None:
    """2,000 graphs of 9 clients and degree 4: each pair is joined in half of them, give or take six deviations."""
    counts: dict[tuple[int, int], int] = {}
    for _ in range(2000):
        for client, others in neighbours(range(9), 4).items():
            for other in others:
                counts[client, other] = counts.get((client, other), 0) + 1
    assert len(counts) == 72
    assert all(abs(count - 1000) < 6 * 22.4 for count in counts.values())


def test_a_graph_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="both are odd"):
        neighbours(range(9), 3)
    with pytest.raises(ValueError, match="twice"):
        neighbours([1, 2, 1], 2)
    with pytest.raises(ValueError, match="needs a neighbour"):
        neighbours(range(9), 0)
