"""A board on which work in a cluster writes how far it is, and from which whoever waits for it reads.

Written to seldom enough, and read when there is time: a board that is lost, or late, holds up no work.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from fedsim.cluster.connecting import ray_module
from fedsim.progress import Listener

SELDOM = 0.5
"""Seconds between two words of the same piece of work, and between two readings."""

Word = tuple[int, int, str]
"""done, total, note: as a `Listener` hears them."""


class Board:
    """The last word of each piece of work since the last reading. Lives in a process of its own."""

    def __init__(self) -> None:
        self._words: dict[str, Word] = {}

    def tell(self, work: str, done: int, total: int, note: str) -> None:
        """Write down how far a piece of work is."""
        self._words[work] = (done, total, note)

    def news(self) -> dict[str, Word]:
        """What was written since it was last asked."""
        words, self._words = self._words, {}
        return words


class Teller:
    """Listens to one piece of work and tells the board: at once, then every half a second at most.

    What was held back is told together with the next word; that the work has ended, its result tells.
    """

    def __init__(self, board: Any, work: str) -> None:
        self._board, self._work = board, work
        self._next = 0.0

    def begun(self) -> None:
        """Tell that the work has begun."""
        self._board.tell.remote(self._work, 0, 1, "")

    def __call__(self, done: int, total: int, note: str) -> None:
        """Hear how far it is."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + SELDOM
            self._board.tell.remote(self._work, done, total, note)


class Reader:
    """A board, with its reader: the process that waits for the work. It ends with `close`, or with that process."""

    def __init__(self) -> None:
        self._ray = ray = ray_module()
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # On the reader's own machine, so that it is lost with nobody but its reader.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
        self.handle = ray.remote(**options)(Board).remote()
        self._asked: Any = None
        self._next = 0.0

    def read(self, listeners: dict[str, Listener]) -> None:
        """Pass on the news to the listener of each piece of work; at most every half a second, and without waiting:
        what is not there yet is passed on the next time.
        """
        now = time.monotonic()
        if self._asked is None:
            if now >= self._next:
                self._next = now + SELDOM
                self._asked = self.handle.news.remote()
            return
        if not self._ray.wait([self._asked], timeout=0)[0]:
            return
        asked, self._asked = self._asked, None
        news: dict[str, Word] = {}
        with suppress(self._ray.exceptions.RayError):  # it died, and is there again
            news = self._ray.get(asked)
        for work, word in news.items():
            if work in listeners:
                listeners[work](*word)

    def close(self) -> None:
        """End the board."""
        self._asked = None
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(self.handle)
