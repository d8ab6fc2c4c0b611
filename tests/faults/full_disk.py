"""A disk that is full, or that only others can write to. Both are for a process that is a fork of its own."""

from __future__ import annotations

import builtins
import ctypes
import errno
import io
import os
from pathlib import Path
from typing import Any


class FullDisk:
    """From a certain write on, each that goes to a folder fails as it does then; there is no way back.

    after: how many writes and calls of fsync pass. passed: how many have so far.
    """

    def __init__(self, folder: Path, after: float) -> None:
        self.folder, self.after, self.passed = str(folder), after, 0
        self._open, self._fsync = io.open, os.fsync

    def install(self) -> None:
        """Stand between the process and its files."""
        io.open = builtins.open = self._opened  # type: ignore[assignment]
        os.fsync = self._synced  # type: ignore[assignment]

    def one_more(self) -> None:
        """Something is to be written."""
        if self.passed >= self.after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.passed += 1

    def _opened(self, file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        place = str(Path(f"/proc/self/fd/{file}").readlink() if isinstance(file, int) else Path(file).absolute())
        if not set(mode) & set("wax+") or not place.startswith(self.folder):
            return self._open(file, mode, *more, **named)
        disk = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                disk.one_more()
                return super().write(data)

        raw = Raw(file, mode.replace("b", "").replace("t", ""))
        whole: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return whole if "b" in mode else io.TextIOWrapper(whole, encoding="utf-8")

    def _synced(self, handle: int) -> None:
        self.one_more()
        self._fsync(handle)


def no_administrator() -> None:
    """Give up what lets an administrator write where modes say that nobody may (CAP_DAC_OVERRIDE and what is like it).

    For other users there is nothing to give up.
    """
    if os.getuid():
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the third version of the call, and this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 of each
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ("capget", "capset"):
        if getattr(libc, call)(header, sets):
            raise OSError(ctypes.get_errno(), call)
        for place in range(3):
            sets[place] &= ~0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
