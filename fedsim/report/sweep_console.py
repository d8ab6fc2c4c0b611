"""The tables of a sweep for a terminal, turned: a line for each column of the page, so that thirteen of them fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedsim.report.cells import Cells
from fedsim.report.sweep_blocks import Block, Entry, Line, blocks
from fedsim.report.sweep_charts import part_tables
from fedsim.report.sweep_reading import sweep_of
from fedsim.report.sweep_tables import state_words

if TYPE_CHECKING:
    from rich.console import RenderableType

STATISTICS = ("mean", "best")
"""What a terminal has room for; std stands in table.md and table.csv."""


def console(results: Mapping[str, Any]) -> list[RenderableType]:
    """What to print, in order: the state in a line, then a table for each protocol, adversary and score.

    Each cell is our value and, where one is published, the difference to it. Strings are shown and never taken for
    markup.
    """
    from rich.text import Text

    sweep = sweep_of(results)
    shown: list[RenderableType] = [Text(_printable(state_words(sweep)))]
    shown += [Text(_printable(sweep.words))] if sweep.words else []
    of_all = list(blocks(sweep))
    first = set(sweep.values[:1]) & {block.value for block in of_all}
    for block in of_all:
        if not first or block.value in first:
            shown.append(_table(block))
    others = list(dict.fromkeys(block.heading for block in of_all if first and block.value not in first))
    if others:
        shown.append(Text(f"{', '.join(others)}: in table.md and report.html"))
    for cells, notes in part_tables(sweep):
        shown += [_rows(cells), *(Text(_printable(note)) for note in notes), Text()]
    return shown


def _rows(cells: Cells) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(_printable(cells.title)), box=box.SIMPLE_HEAD, title_justify="left")
    for name, numeric in zip(cells.header, cells.numeric, strict=True):
        table.add_column(Text(_printable(name)), justify="right" if numeric else "left", overflow="fold")
    for row in cells.rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    return table


def _table(block: Block) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    lines = [line for line in (*block.training, *block.lines) if line.row is None or line.statistic in STATISTICS]
    legend = "after each value its difference to the published one" if block.compared else ""
    table = Table(
        title=Text(_printable(block.caption)),
        box=box.SIMPLE_HEAD,
        caption=Text(legend) if legend else None,
        caption_justify="left",
        title_justify="left",
    )
    table.add_column(Text(_printable(block.columns_label)), overflow="fold")
    for line in lines:
        table.add_column(Text(_printable(_name(line, block))), justify="right", overflow="fold")
    for index, column in enumerate(block.columns):
        cells = [Text(_cell(line, line.entries[index])) for line in lines]
        table.add_row(Text(_printable(column.label)), *cells)
    return table


def _name(line: Line, block: Block) -> str:
    if line.row is None:
        return line.measure.label
    return f"{block.rows_label} {line.row.label} {line.statistic}".strip()


def _cell(line: Line, entry: Entry) -> str:
    ours = entry.shown(line.measure.write)
    return ours if entry.difference is None else f"{ours} ({line.measure.signed(entry.difference)})"


def _printable(words: Sequence[str] | str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in words)
