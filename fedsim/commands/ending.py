"""How `run` and `attack` end: the report written again, the tables, and the exit code."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from fedsim import report
from fedsim.report.table import attacks_table, rounds_table
from fedsim.runs import RunFolder, read_lines
from fedsim.screens import emit


def conclude(folder: RunFolder, code: int, json_lines: bool, **fields: Any) -> int:
    """Write the report and say where it is, after the tables or in one JSON line with `fields`. Returns the code."""
    page = report.write(folder.path)
    if json_lines:
        emit("done", run=str(folder.path), report=str(page), **fields, exit=code)
        return code
    show(folder)
    print(f"\nreport: {page}")
    return code


def show(folder: RunFolder) -> None:
    """Print how training went and what the attacks reached."""
    console = Console()
    # Without a terminal rich assumes 80 columns and breaks words apart; a file can hold longer lines.
    if not console.is_terminal:
        console = Console(width=160)
    rounds, attacks = read_lines(folder.rounds), read_lines(folder.attacks)
    console.print(rounds_table(rounds))
    if attacks:
        console.print(attacks_table(attacks))
