"""How `run` and `attack` end: the report written again, the tables, and the exit code."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from fedsim import report
from fedsim.errors import FedsimError
from fedsim.report import aggregation, words
from fedsim.report.derived import derived_table, meaning, told
from fedsim.report.reading import read
from fedsim.report.round_table import rounds_table
from fedsim.report.table import attacks_table
from fedsim.runs import RunFolder
from fedsim.screens import emit


def conclude(folder: RunFolder, code: int, json_lines: bool, **fields: Any) -> int:
    """Write the report and say where it is, after the tables or in one JSON line with `fields`. Returns the code."""
    try:
        page = report.write(folder.path)
    except OSError as error:
        place = f"{error.filename or folder.path}: {error.strerror or error}"
        raise FedsimError(f"{place}; all else is done, and `fedsim report {folder.path}` writes the page") from error
    if json_lines:
        emit("done", run=str(folder.path), report=str(page), **fields, exit=code)
        return code
    show(folder)
    print(f"\nreport: {page}")
    return code


def show(folder: RunFolder) -> None:
    """Print how training went, how updates were summed, and what the attacks reached."""
    console = Console()
    # Without a terminal rich assumes 80 columns and breaks words apart; a file can hold longer lines.
    if not console.is_terminal:
        console = Console(width=160)
    run = read(folder.path)
    console.print(rounds_table(run.rounds, aggregation.entries(run)))
    secure = aggregation.in_a_line(run)
    if secure:
        console.print(Text(secure + "\n"))
    if run.derived:
        console.print(derived_table(run.derived))
    below = [*told(run.notes), *([meaning(run.derived)] if meaning(run.derived) else [])]
    if below:
        console.print(Text("\n".join(below) + "\n"))
    if run.attacks:
        console.print(attacks_table(run.attacks, words.given_labels(run)))
