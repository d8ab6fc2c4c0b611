"""`fedsim report RUN --watch`: looks on until a run, or a sweep, has ended, and writes its report then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from fedsim.errors import InputError
from fedsim.sweeps.folder import is_sweep_folder
from fedsim.watcher.runs import BROKEN, RunSeen
from fedsim.watcher.sweeps import SweepSeen
from fedsim.watcher.words import line, remedy

Seen = RunSeen | SweepSeen


def check(folders: list[str], every: float) -> None:
    """Raises InputError for what cannot be watched."""
    if len(folders) > 1:
        raise InputError(f"--watch: looks on at one folder at a time, not {len(folders)}; give one")
    if not (math.isfinite(every) and every > 0):
        raise InputError(f"--every {every:g}: must be a number of seconds above 0")


def until_over(path: Path, every: float, json_lines: bool) -> int:
    """Look at a folder every so many seconds, and show what is new. 0 when what goes on there has ended, however; 1 if
    it was broken off.
    """
    seen: Seen = SweepSeen(path) if is_sweep_folder(path) else RunSeen(path)
    with _shown(json_lines) as show:
        while True:
            show(seen, seen.refresh())
            if seen.over:
                break
            time.sleep(every)
    return 1 if seen.status == BROKEN else 0


@contextmanager
def _shown(json_lines: bool) -> Iterator[Callable[[Seen, bool], None]]:
    """A table on a terminal, that stays when all is over; elsewhere a line where something is new."""
    console = Console()
    if json_lines:
        yield _tell_json
    elif not console.is_terminal:
        yield _Lines().tell
    else:
        from rich.live import Live

        from fedsim.watcher.table import picture

        with Live(console=console, auto_refresh=False) as live:
            yield lambda seen, new: live.update(picture(seen, console), refresh=True)


class _Lines:
    """A line where something is new, and what to do, if anything."""

    def __init__(self) -> None:
        self._said = ""

    def tell(self, seen: Seen, new: bool) -> None:
        """Print it. Warnings are told once."""
        told = line(seen)
        if new and told != self._said:
            print(told, flush=True)
            self._said = told
        if seen.over:
            troubles = seen.warnings if isinstance(seen, RunSeen) else [f"{a}: {b}" for a, b in seen.failures.items()]
            for text in troubles:
                print(f"warning: {text}", flush=True)
            if isinstance(seen, RunSeen) and seen.error:
                print(f"failed: {seen.error}", flush=True)
            if remedy(seen):
                print(remedy(seen), flush=True)


def _tell_json(seen: Seen, new: bool) -> None:
    from fedsim.screens import emit

    if new:
        emit("watch", **seen.as_json(), remedy=remedy(seen) or None)
