"""The tables at the end of a run, on the terminal."""

from __future__ import annotations

from rich.console import Console

from fedsim.report.table import attacks_table, rounds_table
from fedsim.runs import RunFolder, read_lines


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
