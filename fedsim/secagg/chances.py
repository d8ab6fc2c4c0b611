"""How probable it is that a random neighbourhood is a bad one: tails of the hypergeometric distribution, as log2.

A client's neighbours are `drawn` of `others`, without replacement, of whom `marked` are bad (corrupt, or gone). Neither
numpy nor torch: an experiment file is checked with it.
"""

from __future__ import annotations

import math
from functools import lru_cache


def log2_binomial(total: int, chosen: int) -> float:
    """log2 of how many ways there are to choose so many of a total."""
    if not 0 <= chosen <= total:
        return -math.inf
    return (math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)) / math.log(2)


def log2_at_least(others: int, marked: int, drawn: int, least: int) -> float:
    """log2 P[X >= least] for X ~ hypergeometric(others, marked, drawn); -inf where it cannot be."""
    if least <= max(0, drawn + marked - others):
        return 0.0
    if least > min(marked, drawn):
        return -math.inf
    if least * (others + 2) < (marked + 1) * (drawn + 1):
        # Below the mode: the complement is the shorter way, and the smaller number.
        fewer = 2 ** log2_at_least(others, others - marked, drawn, drawn - least + 1)
        return math.log2(max(1 - fewer, 2**-53))
    first = log2_binomial(marked, least) + log2_binomial(others - marked, drawn - least) - log2_binomial(others, drawn)
    # The terms fall from here on; each is the last times a ratio of small integers.
    total = term = 1.0
    for x in range(least, min(marked, drawn)):
        term *= (marked - x) * (drawn - x) / ((x + 1) * (others - marked - drawn + x + 1))
        total += term
        if term < total * 1e-17:
            break
    return first + math.log2(total)


@lru_cache(maxsize=4096)
def rare(others: int, marked: int, drawn: int, limit: float) -> int:
    """The smallest x with log2 P[X >= x] < limit; at most one more than X can be."""
    low, high = 0, min(marked, drawn) + 1
    while low < high:
        middle = (low + high) // 2
        if log2_at_least(others, marked, drawn, middle) < limit:
            high = middle
        else:
            low = middle + 1
    return low
