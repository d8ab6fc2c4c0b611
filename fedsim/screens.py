"""What a run shows while it works: progress bars on a terminal, plain lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from fedsim.pace import Pace, about
from fedsim.runs import RoundRecord, finite

TRAINING = "training"
"""What the rounds are called beside attacks."""

PLAIN_EVERY = 5.0
"""Seconds between two lines on the progress of one attack, where there is no terminal."""


class TimeLeft(ProgressColumn):
    """The time that is left. Unlike rich's own, it has an estimate of steps that take minutes, too."""

    def render(self, task: Task) -> Text:
        """`1:05`, `1:00:00`, or `-:--` where nothing can be told yet."""
        left: float | None = task.fields["pace"].left()
        if left is None:
            return Text("-:--", style="progress.remaining")
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        words = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
        return Text(words, style="progress.remaining")


class TerminalScreen:
    """Bars for the rounds and for each attack, with the time that is left."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeLeft(),
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
        self._move(TRAINING, done, total, record.line().partition(", ")[2])

    def attack(self, name: str, done: int, total: int, note: str) -> None:
        """Move an attack's bar."""
        self._move(name, done, total, note)

    def warn(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(f"[yellow]warning:[/] {escape(text)}")

    def _move(self, name: str, done: int, total: int, note: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(escape(name), total=total, note="", pace=Pace())
        task = next(task for task in self._progress.tasks if task.id == self._tasks[name])
        # The report of the end has a total of its own; a finished bar keeps its length.
        if (done, total) == (1, 1):
            done = total = int(task.total or 1)
        task.fields["pace"].step(done, total)
        self._progress.update(self._tasks[name], completed=done, total=total, note=escape(note))


class PlainScreen:
    """A line for each round, and one every few seconds of an attack."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._paces: defaultdict[str, Pace] = defaultdict(Pace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def rounds(self, done: int, total: int, record: RoundRecord) -> None:
        """A line, with the time that is left."""
        print(f"{record.line()} ({done}/{total}{_left(self._paces[TRAINING].step(done, total))})", flush=True)

    def attack(self, name: str, done: int, total: int, note: str) -> None:
        """A line at the start, at the end, and now and then between."""
        now = time.monotonic()
        first, last = name not in self._last, done >= total
        left = _left(self._paces[name].step(done, total))
        if first or last or now - self._last[name] >= PLAIN_EVERY:
            self._last[name] = now
            state = "started" if done == 0 else "done" if (done, total) == (1, 1) else f"{done}/{total}{left}"
            if state == "done" or not last:
                print(f"attack {name}: {state}{', ' + note if note else ''}", flush=True)

    def warn(self, text: str) -> None:
        """A line on the error stream."""
        print(f"warning: {text}", file=sys.stderr, flush=True)


class JsonScreen:
    """One JSON object a line on the output stream. `left_seconds`: an estimate, null where there is none yet."""

    def __init__(self) -> None:
        self._paces: defaultdict[str, Pace] = defaultdict(Pace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def rounds(self, done: int, total: int, record: RoundRecord) -> None:
        """{"event": "round", ...} with the fields of rounds.jsonl, and the time that is left."""
        emit("round", **record.as_json(), rounds=total, left_seconds=_rounded(self._paces[TRAINING].step(done, total)))

    def attack(self, name: str, done: int, total: int, note: str) -> None:
        """{"event": "attack", ...}."""
        left = _rounded(self._paces[name].step(done, total))
        emit("attack", name=name, done=done, total=total, note=note, left_seconds=left)

    def warn(self, text: str) -> None:
        """{"event": "warning", ...}."""
        emit("warning", text=text)


def _left(seconds: float | None) -> str:
    return f", {about(seconds)} left" if seconds else ""


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def emit(event: str, **fields: Any) -> None:
    """Print one JSON line."""
    print(json.dumps(finite({"event": event, **fields}), default=str), flush=True)


def choose_screen(json_lines: bool) -> TerminalScreen | PlainScreen | JsonScreen:
    """The screen that fits where the output goes."""
    if json_lines:
        return JsonScreen()
    console = Console()
    return TerminalScreen(console) if console.is_terminal else PlainScreen()
