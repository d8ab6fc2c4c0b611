"""Whether anybody is at work in a folder."""

from __future__ import annotations

import fcntl
from pathlib import Path

TIMES = 2
"""Looks in a row that must find the lock free: a run that is just starting, or ending, writes and locks in turn."""


class Alive:
    """Watches the lock that a run or a sweep holds on its folder as long as its process lives."""

    def __init__(self, folder: Path) -> None:
        self._lock = folder / ".lock"
        self._free = 0

    def gone(self) -> bool:
        """Whether the process is gone. False also where the folder has no lock, or its file system knows none."""
        self._free = self._free + 1 if self._is_free() else 0
        return self._free >= TIMES

    def _is_free(self) -> bool:
        try:
            with self._lock.open("rb") as file:
                # Shared, so that several may look on, and for no longer than this line.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                fcntl.flock(file, fcntl.LOCK_UN)
        except OSError:
            return False
        return True
