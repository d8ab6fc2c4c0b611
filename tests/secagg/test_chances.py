"""Tails of the hypergeometric distribution against exact integers and against drawn neighbourhoods."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from fedsim.secagg.chances import log2_at_least, log2_binomial, rare


def exact(others: int, marked: int, drawn: int, least: int) -> Fraction:
    """P[X >= least] by counting."""
    ways = sum(
        math.comb(marked, x) * math.comb(others - marked, drawn - x)
        for x in range(max(least, 0), min(marked, drawn) + 1)
        if 0 <= drawn - x <= others - marked
    )
    return Fraction(ways, math.comb(others, drawn))


def log2(value: Fraction) -> float:
    return math.log2(value.numerator) - math.log2(value.denominator) if value else -math.inf


@pytest.mark.parametrize(
    ("others", "marked", "drawn"),
    [(99, 10, 36), (99, 30, 36), (99, 30, 90), (999, 300, 100), (999, 999, 7), (20, 0, 5), (9, 4, 9), (7, 3, 3)],
)
def test_tails_are_exact_however_small(others: int, marked: int, drawn: int) -> None:
    for least in range(-1, drawn + 2):
        expected = log2(exact(others, marked, drawn, least))
        if expected < -1000:
            continue
        assert log2_at_least(others, marked, drawn, least) == pytest.approx(expected, abs=1e-8), least


def test_the_smallest_rare_number() -> None:
    for others, marked, drawn, limit in (
        (99, 10, 36, -46.6),
        (999, 300, 100, -40.0),
        (99, 30, 36, -5),
        (50, 0, 9, -30),
    ):
        found = rare(others, marked, drawn, limit)
        assert log2(exact(others, marked, drawn, found)) < limit <= log2(exact(others, marked, drawn, found - 1))


def test_drawn_neighbourhoods_are_as_bad_as_foretold() -> None:
    """100,000 draws at levels that are seen in so many; the deviation is at most six standard errors."""
    draws = np.random.default_rng(1).hypergeometric(10, 89, 36, 100_000)
    for least in range(1, 9):
        foretold = 2 ** log2_at_least(99, 10, 36, least)
        error = math.sqrt(foretold * (1 - foretold) / len(draws))
        assert abs((draws >= least).mean() - foretold) < 6 * error


def test_binomials() -> None:
    assert 2 ** log2_binomial(10, 3) == pytest.approx(120)
    assert log2_binomial(3, 4) == log2_binomial(3, -1) == -math.inf
