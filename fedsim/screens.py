"""What a run shows while it works: progress bars on a terminal, plain lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fedsim.runs import RoundRecord, finite

PLAIN_EVERY = 5.0
"""Seconds between two lines on the progress of one attack, where there is no terminal."""


class TerminalScreen:
    """Bars for the rounds and for each attack, with the time that is left."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def rounds(self, done: int, total: int, record: RoundRecord) -> None:
        """Move the bar of the rounds."""
        self._move("training", done, total, record.line().partition(", ")[2])

    def attack(self, name: str, done: int, total: int, note: str) -> None:
        """Move an attack's bar."""
        self._move(name, done, total, note)

    def warn(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(f"[yellow]warning:[/] {escape(text)}")

    def _move(self, name: str, done: int, total: int, note: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(escape(name), total=total, note="")
        # The report of the end has a total of its own; a finished bar keeps its length.
        if (done, total) == (1, 1):
            task = next(task for task in self._progress.tasks if task.id == self._tasks[name])
            done = total = int(task.total or 1)
        self._progress.update(self._tasks[name], completed=done, total=total, note=escape(note))


class PlainScreen:
    """A line for each round, and one every few seconds of an attack."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def rounds(self, done: int, total: int, record: RoundRecord) -> None:
        """A line."""
        print(f"{record.line()} ({done}/{total})", flush=True)

    def attack(self, name: str, done: int, total: int, note: str) -> None:
        """A line at the start, at the end, and now and then between."""
        now = time.monotonic()
        first, last = name not in self._last, done >= total
        if first or last or now - self._last[name] >= PLAIN_EVERY:
            self._last[name] = now
            state = "started" if done == 0 else "done" if (done, total) == (1, 1) else f"{done}/{total}"
            if state == "done" or not last:
                print(f"attack {name}: {state}{', ' + note if note else ''}", flush=True)

    def warn(self, text: str) -> None:
        """A line on the error stream."""
        print(f"warning: {text}", file=sys.stderr, flush=True)


class JsonScreen:
    """One JSON object a line on the output stream."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def rounds(self, done: int, total: int, record: RoundRecord) -> None:
        """{"event": "round", ...} with the fields of rounds.jsonl."""
        emit("round", **record.as_json())

    def attack(self, name: str, done: int, total: int, note: str) -> None:
        """{"event": "attack", ...}."""
        emit("attack", name=name, done=done, total=total, note=note)

    def warn(self, text: str) -> None:
        """{"event": "warning", ...}."""
        emit("warning", text=text)


def emit(event: str, **fields: Any) -> None:
    """Print one JSON line."""
    print(json.dumps(finite({"event": event, **fields}), default=str), flush=True)


def choose_screen(json_lines: bool) -> TerminalScreen | PlainScreen | JsonScreen:
    """The screen that fits where the output goes."""
    if json_lines:
        return JsonScreen()
    console = Console()
    return TerminalScreen(console) if console.is_terminal else PlainScreen()
