"""What a defense costs in time: a client's round with it over the same round without.

Cells run side by side on shared cores, so their own times say little. This is measured apart: both rounds take turns in
one process, which sees the same machine for both, and the median of the ratios is kept.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

Round = Callable[[int], None]
"""Plays a client's part of the round of this number."""

Clock = Callable[[], float]

BUDGET = 6.0
"""Seconds for all rounds of one comparison."""

MOST = 30
FEWEST = 3


@dataclass(frozen=True)
class Timing:
    """Seconds of each round, in the order in which they were measured: with the defenses, and of the baseline."""

    own: tuple[float, ...]
    baseline: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The median of own over baseline."""
        return statistics.median(one / max(other, 1e-9) for one, other in zip(self.own, self.baseline, strict=True))


def compare(own: Round, baseline: Round, rounds: int, clock: Clock = time.process_time) -> Timing:
    """Play rounds in turns for about BUDGET seconds: MOST pairs at most, and FEWEST unless one alone takes too long.

    rounds: after so many the numbers start over. clock: of the process's CPU time, which other processes do not move;
    where a GPU does the work, one that waits for it.
    """
    began = time.perf_counter()
    for play in (baseline, own):  # what is built on first use is nobody's cost
        play(1)
    first = time.perf_counter() - began
    times: list[tuple[float, float]] = []
    while len(times) < MOST:
        spent = time.perf_counter() - began
        if times and spent + first > (BUDGET if len(times) >= FEWEST else 3 * BUDGET):
            break
        number = len(times) % rounds + 1
        # Whoever goes second finds warmer caches, so they take turns at that as well.
        taken = {}
        for who in ("own", "baseline") if len(times) % 2 else ("baseline", "own"):
            start = clock()
            (own if who == "own" else baseline)(number)
            taken[who] = clock() - start
        times.append((taken["own"], taken["baseline"]))
    return Timing(tuple(one for one, _ in times), tuple(other for _, other in times))
