"""What was seen as a picture of the terminal's size."""

from __future__ import annotations

import re

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedsim.report.cells import Cells
from fedsim.report.formats import counted
from fedsim.report.round_table import round_cells
from fedsim.report.table import attack_cells
from fedsim.watcher import words
from fedsim.watcher.runs import BROKEN, RunSeen
from fedsim.watcher.sweeps import DONE, FAILED, SweepSeen

STYLES = {"running": "cyan", "starting": "cyan", "done": "green", BROKEN: "bold red", "failed": "bold red"}
FRAME = 3
"""Lines of a table besides its rows: title, header, and an empty one before it."""

TROUBLES = 3
"""Warnings that are shown."""


def picture(seen: RunSeen | SweepSeen, console: Console) -> RenderableType:
    """All of it, no taller than the terminal."""
    parts = _of_run(seen, console.height) if isinstance(seen, RunSeen) else _of_sweep(seen, console.height)
    again = words.remedy(seen)
    return Group(_head(seen), *parts, *([Text(again, style="bold red")] if again else []))


def _head(seen: RunSeen | SweepSeen) -> Text:
    head = Text.assemble((seen.name, "bold"), "  ", (seen.status, STYLES.get(seen.status, "yellow")))
    if isinstance(seen, RunSeen):
        head.append(f"  {words.age(seen.age)}", style="dim")
    return head


def _of_run(seen: RunSeen, height: int) -> list[RenderableType]:
    bars = _bars()
    training = seen.done is None or seen.done < seen.rounds
    left = "" if seen.over else words.left(seen.left)
    _bar(bars, "rounds", seen.done or 0, seen.rounds, left if training else "")
    if seen.jobs:
        notes = (f"{seen.failed} failed" if seen.failed else "", "" if training else left)
        _bar(bars, "attacks", seen.attacked, seen.jobs, ", ".join(note for note in notes if note))
    troubles = _troubles(seen.warnings, len(seen.warnings))
    if seen.error:
        troubles.append(Text(f"failed: {seen.error}", style="red"))
    room = height - 7 - len(troubles)
    attacks = list(seen.attacks)[-max(min(room // 2 - FRAME, 8), 1) :]
    room -= (len(attacks) + FRAME) if attacks else 0
    rounds = list(seen.recent)[-max(room - FRAME, 1) :]
    parts: list[RenderableType] = [bars]
    if rounds:
        parts.append(Text())
        parts.append(_compact(round_cells(rounds), len(rounds), (seen.done or 0) + 1))
    if attacks:
        parts.append(Text())
        parts.append(_compact(attack_cells(attacks), len(attacks), seen.attacked, ("defenses", "batch", "iterations")))
    if seen.dropouts:
        skipped = f", {counted(seen.skipped, 'round')} skipped" if seen.skipped else ""
        parts.append(Text(f"{counted(seen.dropouts, 'dropout')} so far{skipped}", style="yellow"))
    return [*parts, *troubles]


def _of_sweep(seen: SweepSeen, height: int) -> list[RenderableType]:
    bars = _bars()
    note = "" if seen.over else words.left(seen.left)
    failed = f"{seen.states[FAILED]} failed" if seen.states[FAILED] else ""
    done = seen.states[DONE] + seen.states[FAILED]
    _bar(bars, "cells", done, seen.total, ", ".join(part for part in (failed, note) if part))
    most = max(height - 7 - TROUBLES, 3)
    for run in seen.working[:most]:
        _bar(bars, f"  {run.name}", run.done or 0, run.rounds, words.attacks(run))
    parts: list[RenderableType] = [bars]
    if len(seen.working) > most:
        parts.append(Text(f"  and {len(seen.working) - most} more at work", style="dim"))
    return [*parts, *_troubles([f"{name}: {why}" for name, why in seen.failures.items()], len(seen.failures))]


def _troubles(texts: list[str], count: int) -> list[Text]:
    shown = [Text(f"warning: {text}", style="yellow", overflow="ellipsis", no_wrap=True) for text in texts[-TROUBLES:]]
    more = count - len(shown)
    return [Text(f"{more} earlier warnings", style="dim"), *shown] if more else shown


def _compact(cells: Cells, shown: int, all_: int, without: tuple[str, ...] = ()) -> Table:
    """A row a line, whatever is in it. Notes are left out: they are in the report, and would not keep still here."""
    title = f"{cells.title}, the last {shown} of {all_}" if shown < all_ else cells.title
    table = Table(title=title, box=None, title_justify="left", padding=(0, 2, 0, 0), header_style="bold dim")
    kept = [place for place, name in enumerate(cells.header) if name not in without]
    for place in kept:
        right = "right" if cells.numeric[place] else "left"
        table.add_column(Text(cells.header[place]), justify=right, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
    for row in cells.rows:
        table.add_row(*(Text(re.sub(r" \[\d+\]$", "", row[place])) for place in kept))
    return table


def _bars() -> Table:
    bars = Table.grid(padding=(0, 1))
    for _ in range(4):
        bars.add_column()
    return bars


def _bar(bars: Table, name: str, done: int, total: int, note: str) -> None:
    bar = ProgressBar(total=max(total, 1), completed=done, width=30)
    bars.add_row(Text(name), bar, Text(f"{done}/{total or '?'}", style="green"), Text(note, style="cyan"))
