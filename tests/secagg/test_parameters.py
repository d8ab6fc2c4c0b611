"""Neighbours and threshold: the derived ones are the smallest safe ones, and unsafe ones are refused with numbers."""

from __future__ import annotations

import math
import random
import re
import time
from dataclasses import dataclass, replace
from functools import cache

import pytest

from fedsim.secagg import chances, parameters
from fedsim.secagg.graph import neighbours
from fedsim.secagg.parameters import Declared, Parameters, derive, problems_with


@dataclass(frozen=True)
class Settings:
    """As those of `secagg+`."""

    corrupt: float = 0.1
    dropout: float = 0.3
    neighbours: int | None = None
    threshold: int | None = None
    server: str = "malicious"
    min_survivors: int = 3


CURIOUS = Settings(server="honest_but_curious")


@pytest.mark.parametrize(
    ("clients", "corrupt", "pair"),
    [(100, 0.1, (36, 11)), (100, 0.2, (50, 21)), (1000, 0.1, (100, 38)), (1000, 0.2, (158, 72))],
)
def test_against_a_curious_server(clients: int, corrupt: float, pair: tuple[int, int]) -> None:
    found = derive(replace(CURIOUS, corrupt=corrupt), clients)
    assert (found.neighbours, found.threshold) == pair


@cache
def more_than(others: int, marked: int, drawn: int, limit: int) -> int:
    """The smallest x with (others + 1) P[X >= x] < 2^limit, in integers."""
    ways, x = 0, min(marked, drawn) + 1
    while x > 0:
        ways += math.comb(marked, x - 1) * math.comb(others - marked, drawn - x + 1)
        if (others + 1) * ways * 2**-limit >= math.comb(others, drawn):
            return x
        x -= 1
    return 0


def searched(clients: int, bad: int, gone: int, malicious: bool) -> tuple[int, int] | None:
    """By trying every even number of neighbours and every threshold, without the rule for the two gaps."""
    for degree in range(2, clients - 1, 2):
        if clients * ((bad + gone) / clients) ** degree >= 2**-40:
            continue
        corrupt = more_than(clients - 1, bad, degree, -40)
        dead = more_than(clients - 1, gone, degree, -30)
        for threshold in range(2, degree + 2):
            private = 2 * threshold - degree - 1 >= corrupt if malicious else threshold >= corrupt
            if private and degree - threshold + 1 >= dead:
                return degree, threshold
    return None


@pytest.mark.parametrize("malicious", [False, True])
@pytest.mark.parametrize(
    ("clients", "corrupt", "dropout"),
    [(60, 0.1, 0.3), (100, 0.1, 0.3), (100, 0.2, 0.3), (100, 0.3, 0.1), (150, 0.04, 0.1), (200, 0.1, 0.4)],
)
def test_no_smaller_graph_does(clients: int, corrupt: float, dropout: float, malicious: bool) -> None:
    server = "malicious" if malicious else "honest_but_curious"
    found = derive(Settings(corrupt, dropout, server=server), clients)
    expected = searched(clients, round(corrupt * clients), round(dropout * clients), malicious)
    if expected is None:
        assert found.neighbours == clients - 1
    else:
        assert (found.neighbours, found.threshold) == expected


@pytest.mark.parametrize("malicious", [False, True])
def test_bounds_of_the_threshold_are_where_the_chances_say(malicious: bool) -> None:
    """For every number of neighbours: one less than the least leaks, one more than the most is lost."""
    declared = Declared(100, 0.1, 0.3, malicious)
    for degree in range(4, 99):
        least, most = declared.least(degree), declared.most(degree)
        assert declared.leak(degree, least) < -40 and (least == 2 or declared.leak(degree, least - 1) >= -40)
        assert declared.loss(degree, most) < -30 <= declared.loss(degree, most + 1)


@pytest.mark.parametrize("clients", [*range(2, 51), 60, 99, 100, 500, 1000, 10_000])
def test_a_malicious_server_never_opens_both_secrets(clients: int) -> None:
    """Of k + 1 holders the honest ones are divided: both parts with the corrupt ones reach the threshold in no case."""
    found = derive(Settings(), clients)
    bad, gone = int(clients / 10), int(3 * clients / 10 + 1e-9)
    assert 2 <= found.threshold <= found.min_survivors
    assert found.min_survivors >= max(3, bad + 2)
    if found.neighbours == clients - 1:
        half = (clients - bad) // 2
        assert half + bad < found.threshold <= clients - gone
    else:
        assert clients > 50
        expected_bad = found.neighbours * bad / (clients - 1)
        assert 2 * found.threshold > found.neighbours + 1 + expected_bad
        assert found.threshold < found.neighbours * (1 - gone / (clients - 1))


@pytest.mark.parametrize("clients", range(2, 51))
def test_all_with_all_against_a_curious_server(clients: int) -> None:
    found = derive(CURIOUS, clients)
    assert found.neighbours == clients - 1
    assert max(2, clients // 2 + 1) == found.threshold <= clients - math.floor(0.3 * clients)


def test_a_lower_threshold_where_many_drop_out() -> None:
    assert derive(replace(CURIOUS, dropout=0.6), 20) == Parameters(19, 8, 8)
    assert derive(replace(CURIOUS, dropout=0.6, corrupt=0.3), 20) == Parameters(19, 8, 8)
    assert problems_with(replace(CURIOUS, dropout=0.6, corrupt=0.4), 20)


def test_one_honest_client_is_never_alone_among_corrupt_ones() -> None:
    """Ten corrupt ones of a hundred could subtract what is theirs from a sum of eleven."""
    assert derive(CURIOUS, 100) == Parameters(36, 11, 12)
    assert derive(replace(CURIOUS, min_survivors=20), 100).min_survivors == 20


def test_fractions_mean_what_they_say() -> None:
    """0.29 of 100 clients are 29, though 0.29 * 100 is a little less in floats."""
    assert Declared(100, 0.29, 0.07, True).bad == 29 and Declared(100, 0.29, 0.07, True).gone == 7


@pytest.mark.parametrize("server", ["malicious", "honest_but_curious"])
@pytest.mark.parametrize("clients", [3, 10, 50, 100, 1000])
@pytest.mark.parametrize(("corrupt", "dropout"), [(0.5, 0.6), (0.9, 0.3), (0.4, 0.4), (0.0, 0.99), (0.99, 0.0)])
def test_fractions_that_cannot_be_are_told_with_a_remedy_that_helps(
    clients: int, corrupt: float, dropout: float, server: str
) -> None:
    settings = Settings(corrupt, dropout, server=server)
    problems = problems_with(settings, clients)
    if not problems:
        assert derive(settings, clients).min_survivors <= clients
        return
    ((key, problem),) = problems
    assert key in ("corrupt", "dropout") and f"of {clients} clients" in problem
    with pytest.raises(ValueError, match=re.escape(f"{key}: {problem}")):
        derive(settings, clients)
    remedies = re.findall(r"lower (corrupt|dropout) to at most ([\d.]+)", problem)
    assert remedies or "lower both" in problem
    for name, most in remedies:
        assert not problems_with(replace(settings, **{name: float(most)}), clients), problem
    if "honest_but_curious" in problem:
        assert not problems_with(replace(settings, server="honest_but_curious"), clients)


@pytest.mark.parametrize(
    ("settings", "clients", "key", "words"),
    [
        (
            Settings(threshold=1),
            100,
            "threshold",
            "one share must not open a secret; 2 at least; the derived pair is 72",
        ),
        (replace(CURIOUS, neighbours=10, threshold=5), 100, "neighbours", r"10 of 100 .* 2\^-2, .* below 2\^-40"),
        (replace(CURIOUS, neighbours=36, threshold=10), 100, "threshold", r"10 of 37 holders: .* 2\^-9, .* 36 and 11"),
        (replace(CURIOUS, neighbours=36, threshold=12), 100, "threshold", r"12 of 37 holders: .* 30 dropouts .* 2\^-"),
        (Settings(neighbours=60), 100, "neighbours", r"no threshold does: .* derived pair is 72 and 42"),
        (Settings(neighbours=72, threshold=41), 100, "threshold", r"malicious server can open both .* 2\^-40"),
        (Settings(threshold=5), 100, "threshold", r"5 of 73 holders"),
        (Settings(threshold=95), 100, "threshold", r"95 of 73 holders: with 30 dropouts"),
        (Settings(threshold=10), 20, "threshold", r"10 of 20 holders: .* above 20 \+ 2; the derived pair is 19 and 12"),
        (replace(CURIOUS, threshold=2), 20, "threshold", r"2 of 20 holders: .* corrupt \(2 of 20\)"),
        (Settings(threshold=15), 20, "threshold", r"15 of 20 holders: only 14 of 20 clients are left after 6 dropouts"),
        (Settings(neighbours=10), 20, "neighbours", r"10 of 20 .* derived pair is 19 and 12"),
        (Settings(neighbours=71), 99, "neighbours", "both are odd"),
        (Settings(), 1, "min_survivors", "at least 2"),
    ],
)
def test_an_unsafe_choice_is_refused_with_its_numbers(settings: Settings, clients: int, key: str, words: str) -> None:
    ((found, problem),) = problems_with(settings, clients)
    assert found == key and re.search(words, problem), problem
    with pytest.raises(ValueError, match=key):
        derive(settings, clients)


@pytest.mark.parametrize("settings", [Settings(), CURIOUS])
@pytest.mark.parametrize("clients", [10, 100, 1000])
def test_what_is_derived_may_be_written_by_hand(settings: Settings, clients: int) -> None:
    found = derive(settings, clients)
    both = replace(settings, neighbours=found.neighbours, threshold=found.threshold)
    assert derive(both, clients) == found
    assert derive(replace(both, threshold=None), clients) == found
    assert derive(replace(both, neighbours=None), clients) == found
    more = derive(replace(settings, neighbours=2 * clients), clients)
    assert more.neighbours == clients - 1, "more than all are all"


def bad_neighbourhoods(clients: int, bad: int, degree: int, rounds: int) -> list[int]:
    """Corrupt neighbours of each honest client, in drawn graphs."""
    found = []
    for _ in range(rounds):
        graph = neighbours(range(clients), degree)
        found += [sum(other < bad for other in graph[client]) for client in range(bad, clients)]
    return found


def test_drawn_graphs_leak_as_often_as_foretold() -> None:
    """At thresholds that are far too low, so that it is seen: the chances per client, in 300 graphs of 60 clients."""
    clients, bad, degree = 60, 12, 16
    seen = bad_neighbourhoods(clients, bad, degree, 300)
    curious = Declared(clients, 0.2, 0.3, False)
    for threshold in (3, 5, 6):
        foretold = 2 ** curious.leak(degree, threshold) / clients
        assert sum(corrupt >= threshold for corrupt in seen) / len(seen) == pytest.approx(foretold, rel=0.25)
    malicious = Declared(clients, 0.2, 0.3, True)
    for threshold in (10, 11):
        foretold = 2 ** malicious.leak(degree, threshold) / clients
        # Two disjoint groups of the honest holders, each of which reaches the threshold with the corrupt ones.
        both = sum((degree + 1 - corrupt) >= 2 * (threshold - corrupt) for corrupt in seen)
        assert both / len(seen) == pytest.approx(foretold, rel=0.25)
    for threshold in (12, 13):
        # The dropouts take the corrupt ones' places: 18 of 60, as often as too few of 16 neighbours are left.
        gone = bad_neighbourhoods(clients, 18, degree, 100)
        lost = sum(degree - away < threshold for away in gone) / len(gone)
        assert lost == pytest.approx(2 ** curious.loss(degree, threshold) / clients, rel=0.25)


def test_drawn_graphs_fall_apart_no_more_often_than_foretold() -> None:
    clients, missing, degree, rounds = 40, 16, 8, 2000
    chance, parted = random.Random(1), 0
    for _ in range(rounds):
        graph = neighbours(range(clients), degree)
        left = set(range(clients)) - set(chance.sample(range(clients), missing))
        start = next(iter(left))
        seen, ahead = {start}, [start]
        while ahead:
            fresh = set(graph[ahead.pop()]) & left - seen
            seen |= fresh
            ahead += fresh
        parted += seen != left
    bound = 2 ** Declared(clients, 0.2, 0.2, False).apart(degree)
    assert 0.01 < bound < 0.5, "a level at which something is seen"
    assert 0 < parted / rounds < bound


def test_it_is_fast_enough_to_check_a_file() -> None:
    """10,000 clients, nothing remembered: processor time, the best of three."""
    for settings in (Settings(), CURIOUS, Settings(threshold=400), Settings(0.33, 0.3), Settings(0.45, 0.45)):
        took = []
        for _ in range(3):
            parameters._solve.cache_clear()
            chances.rare.cache_clear()
            start = time.process_time()
            problems_with(settings, 10_000)
            took.append(time.process_time() - start)
        assert min(took) < 0.1, settings
