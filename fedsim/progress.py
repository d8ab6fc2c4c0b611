"""How long work tells whoever watches how far it is, without knowing who watches.

An attack calls `report(done, total, note)` every so many steps; a run installs a listener around it. With no listener
the call does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from fedsim.runs import RoundRecord

Listener = Callable[[int, int, str], None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def report(done: int, total: int, note: str = "") -> None:
    """Tell the listener, if there is one, that `done` of `total` steps are over."""
    listener = _listener.get()
    if listener is not None:
        listener(done, total, note)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the reports made inside the block to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class Screen(Protocol):
    """Whoever shows progress: a terminal, plain lines, JSON lines, or nobody."""

    def rounds(self, done: int, total: int, record: RoundRecord) -> None:
        """A round is over."""
        ...

    def attack(self, name: str, done: int, total: int, note: str) -> None:
        """An attack has come so far."""
        ...

    def warn(self, text: str) -> None:
        """Something went wrong that the run survives."""
        ...
