"""A table as strings, with its footnotes: for a terminal, for a plain text file, and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Cells:
    """A table as strings. `numeric` says which columns are set flush right; `notes` stand below."""

    title: str
    header: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


class Notes:
    """Footnotes, each reason once."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def mark(self, cell: str, reason: str) -> str:
        """The cell with the number of its reason; as it is without one."""
        if not reason:
            return cell
        if reason not in self.reasons:
            self.reasons.append(reason)
        return f"{cell} [{self.reasons.index(reason) + 1}]"

    def written(self) -> tuple[str, ...]:
        """All reasons, with their numbers."""
        return tuple(f"[{number}] {reason}" for number, reason in enumerate(self.reasons, 1))


def plain(cells: Cells) -> str:
    """Columns in line, two spaces apart, notes below; control characters of a foreign string are shown, not obeyed."""
    if not cells.rows:
        return f"{cells.title}: none"
    lines = [cells.header, *([_printable(cell) for cell in row] for row in cells.rows)]
    widths = [max(len(row[column]) for row in lines) for column in range(len(cells.header))]
    written = [_aligned(row, widths, cells.numeric) for row in lines]
    return "\n".join([*written, *(_printable(note) for note in cells.notes)])


def _aligned(row: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    columns = zip(row, widths, numeric, strict=True)
    return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in columns).rstrip()


def rich(cells: Cells) -> Table:
    """The table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text, and never str: a string with square brackets would be taken for markup.
    notes = Text("\n".join(_printable(note) for note in cells.notes)) if cells.notes else None
    table = Table(title=cells.title, box=box.SIMPLE_HEAD, caption=notes, caption_justify="left", title_justify="left")
    for name, right in zip(cells.header, cells.numeric, strict=True):
        table.add_column(Text(name), justify="right" if right else "left", overflow="fold")
    for row in cells.rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    return table


def _printable(cell: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in cell)
