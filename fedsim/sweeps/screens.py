"""What a sweep shows while it works: how many of its runs are done, and how far those are that go on now."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape

from fedsim.runs import RoundRecord
from fedsim.screens import JsonScreen, PlainScreen, TerminalScreen, emit
from fedsim.sweeps.runner import Kind

EVERY = 0.5
"""Seconds between two messages of a worker on the same attack."""

PLAIN_EVERY = 10.0
"""Seconds between two lines on what goes on, where there is no terminal."""

_ALL = "all runs"


class Relay:
    """A run's screen inside a worker: sends on what it is told, but not more than anybody could read."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._last: dict[str, float] = {}

    def rounds(self, done: int, total: int, record: RoundRecord) -> None:
        """A round is over."""
        if self._due("rounds") or done >= total:
            self._tell("rounds", done, total, record)

    def attack(self, name: str, done: int, total: int, note: str) -> None:
        """An attack has come so far."""
        if self._due(name) or done >= total:
            self._tell("attack", name, done, total, note)

    def warn(self, text: str) -> None:
        """Something went wrong that the run survives."""
        self._tell("warn", text)

    def _due(self, what: str) -> bool:
        now = time.monotonic()
        if now - self._last.get(what, -EVERY) < EVERY:
            return False
        self._last[what] = now
        return True


class TerminalSweep(TerminalScreen):
    """A bar for the whole sweep, and one below it for each run that goes on."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._done = self._total = 0

    def begin(self, total: int, done: int) -> None:
        """Draw the bar of all runs."""
        self._done, self._total = done, total
        self._move(_ALL, done, max(total, 1), "")

    def started(self, kind: Kind, name: str) -> None:
        """A bar of its own."""
        self._move(name, 0, 1, "starting")

    def moved(self, kind: Kind, name: str, word: str, facts: tuple[Any, ...]) -> None:
        """Move a run's bar."""
        if word == "warn":
            self.warn(f"{name}: {facts[0]}")
            return
        done, total, note = _progress(word, facts)
        if (done, total) != (1, 1):
            self._move(name, done, total, note)

    def ended(self, kind: Kind, name: str, error: str | None, seconds: float) -> None:
        """Take the run's bar away and move that of all."""
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))
        if error is not None:
            self._progress.console.print(f"[red]failed:[/] {escape(f'{name}: {error}')}")
        self._done += 1
        self._move(_ALL, self._done, self._total, "")


class PlainSweep(PlainScreen):
    """A line for each run that ends, and one now and then on what goes on."""

    def __init__(self) -> None:
        super().__init__()
        self._began = self._said = time.monotonic()
        self._done = self._before = self._total = 0

    def begin(self, total: int, done: int) -> None:
        """A line on what is to be done."""
        self._done = self._before = done
        self._total = total
        if total:
            print(f"{total - done} of {total} runs to do" + (f"; {done} are done" if done else ""), flush=True)

    def started(self, kind: Kind, name: str) -> None:
        """Nothing: the end is told."""

    def moved(self, kind: Kind, name: str, word: str, facts: tuple[Any, ...]) -> None:
        """A line every few seconds, whichever run it is of."""
        if word == "warn":
            self.warn(f"{name}: {facts[0]}")
        elif time.monotonic() - self._said >= PLAIN_EVERY:
            self._said = time.monotonic()
            done, total, note = _progress(word, facts)
            print(f"  {name}: {done}/{total}{', ' + note if note else ''}", flush=True)

    def ended(self, kind: Kind, name: str, error: str | None, seconds: float) -> None:
        """A line with the time that is left."""
        self._done += 1
        self._said = time.monotonic()
        left = self._total - self._done
        mean = (time.monotonic() - self._began) / (self._done - self._before)
        rest = f", about {_time(mean * left)} left" if left else ""
        what = f"failed: {error}" if error is not None else f"{seconds:.1f} s"
        print(f"({self._done}/{self._total}{rest}) {name}: {what}", flush=True)


class JsonSweep(JsonScreen):
    """One JSON object a line: what a run tells carries the run's name."""

    def begin(self, total: int, done: int) -> None:
        """{"event": "sweep", "total", "done"}."""
        emit("sweep", total=total, done=done)

    def started(self, kind: Kind, name: str) -> None:
        """{"event": "cell" (or "training", "timing"), "name", "status": "started"}."""
        emit(kind, name=name, status="started")

    def moved(self, kind: Kind, name: str, word: str, facts: tuple[Any, ...]) -> None:
        """{"event": "round", "attack" or "warning", "run", ...}."""
        if word == "warn":
            emit("warning", run=name, text=facts[0])
        elif word == "rounds":
            emit("round", run=name, **facts[2].as_json())
        else:
            emit("attack", run=name, **dict(zip(("name", "done", "total", "note"), facts, strict=True)))

    def ended(self, kind: Kind, name: str, error: str | None, seconds: float) -> None:
        """{"event": "cell", "name", "status": "done" or "failed", "error", "seconds"}."""
        emit(kind, name=name, status="done" if error is None else "failed", error=error, seconds=seconds)


def choose(json_lines: bool) -> TerminalSweep | PlainSweep | JsonSweep:
    """The screen that fits where the output goes."""
    if json_lines:
        return JsonSweep()
    console = Console()
    return TerminalSweep(console) if console.is_terminal else PlainSweep()


def _progress(word: str, facts: tuple[Any, ...]) -> tuple[int, int, str]:
    """done, total, note."""
    if word == "rounds":
        done, total, record = facts
        return done, total, record.line().partition(", ")[2]
    name, done, total, note = facts
    return done, total, ", ".join(part for part in (name, note) if part)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
