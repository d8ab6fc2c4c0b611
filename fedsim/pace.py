"""How long work will still take, told from how fast it went lately."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

LATELY = 30
"""Steps that the estimate is made from: the first ones, with their start-up, are forgotten."""


class Pace:
    """Estimates for one piece of work that reports how much of it is done.

    The first report is where the clock starts, whatever it says: work that goes on from its seventh step has not taken
    no time for six.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[int, float]] = deque(maxlen=LATELY + 1)
        self._total = 0

    def step(self, done: int, total: int) -> float | None:
        """Note that `done` of `total` steps are over. Returns `left`."""
        if self._seen and done < self._seen[-1][0]:  # another pass
            self._seen.clear()
        self._total = total
        if not self._seen or done > self._seen[-1][0]:
            self._seen.append((done, self._clock()))
        return self.left()

    def left(self) -> float | None:
        """Seconds that are left from now on; 0 at the end, None where nothing can be told yet."""
        if not self._seen:
            return None
        done, then = self._seen[-1]
        if done >= self._total:
            return 0.0
        first, start = self._seen[0]
        if done == first:
            return None
        each = (then - start) / (done - first)
        return max(each * (self._total - done) - (self._clock() - then), 0.0)


def about(seconds: float) -> str:
    """`about 40 s`, `about 3 min`, `about 1.5 h`: no more digits than an estimate has."""
    if seconds < 10:
        return f"about {max(round(seconds), 1)} s"
    if seconds < 90:
        return f"about {5 * round(seconds / 5)} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"about {seconds / 86400:.1f} days"
