"""What was added to a file of lines since the last look."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from fedsim.report.values import Table


class Tail:
    """Follows one .jsonl file. Lines that are being written wait until they are whole; damaged ones are left out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._file = 0
        """Its number in the file system: another one is another file."""

    def new(self) -> tuple[list[Table], bool]:
        """The lines since the last call, and whether they are to be read instead of those before: the file is another
        one, or was cut back, as where a run goes on from a checkpoint.
        """
        try:
            with self._path.open("rb") as file:
                facts = os.fstat(file.fileno())
                again = facts.st_ino != self._file or facts.st_size < self._at
                self._at = 0 if again else self._at
                again, self._file = again and self._file != 0, facts.st_ino
                if facts.st_size == self._at:
                    return [], again
                file.seek(self._at)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return [], False
        self._at += len(whole) + len(newline)
        return [line for line in map(_parsed, whole.split(b"\n")) if line is not None], again


class Changing:
    """Follows one small file that is written anew as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self.content: Table = {}

    def refresh(self) -> bool:
        """Read it again if it is another one. Whether it was."""
        try:
            facts = self._path.stat()
            seen = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
            if seen == self._seen:
                return False
            content = _parsed(self._path.read_bytes())
        except OSError:
            return False
        self._seen = seen
        self.content = content or {}
        return True


def _parsed(line: bytes) -> Table | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, Mapping) else None
