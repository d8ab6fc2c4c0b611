"""The tables of a sweep as files: Markdown for people, CSV for programs.

Every number comes from the sweep's `results.json`; nothing is scored again, and torch is not needed.
"""

from __future__ import annotations

import csv as comma
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedsim.report.formats import counted
from fedsim.report.sweep_blocks import Block, Line, blocks, training_lines
from fedsim.report.sweep_charts import part_tables
from fedsim.report.sweep_reading import STATES, STATISTICS, Protocol, Sweep, points, slices, sweep_of

LEADING = ("protocol", "adversary", "row", "column", "value", "statistic")
TRAINING = "training"
"""Stands for the statistic of a value of the training."""


def markdown(results: Mapping[str, Any]) -> str:
    """The tables, one for each protocol, adversary and score: ours, the published values and the difference in lines.

    `-` stands for what is missing, `failed` for a cell that failed; notes below say how the scores were computed.
    """
    sweep = sweep_of(results)
    written = [f"# {_escaped(sweep.title or sweep.name)}", "", _escaped(state_words(sweep)), ""]
    written += [_escaped(sweep.words), ""] if sweep.words else []
    protocol: Protocol | None = None
    notes: list[str] = []
    for block in blocks(sweep):
        if block.protocol is not protocol:
            protocol, notes = block.protocol, []
            written += [f"## {_escaped(protocol.label)}", ""]
        where = " · ".join(part for part in (block.slice.words, block.label, block.heading) if part)
        written += [f"### {_escaped(where)}", "", *_markdown_table(block), ""]
        for note in block.notes:
            # What was said below an earlier table of the protocol needs no saying again.
            if note not in notes:
                notes.append(note)
                written.append(f"- {_escaped(note)}")
        written.append("")
    others = list(part_tables(sweep))
    for cells, said in others:
        header = "| " + " | ".join(_escaped(cell) for cell in cells.header) + " |"
        rule = "|" + "".join("---:|" if numeric else "---|" for numeric in cells.numeric)
        lines = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in cells.rows]
        written += [f"## {_escaped(cells.title)}", "", header, rule, *lines, ""]
        written += [*(f"- {_escaped(note)}" for note in said), ""]
    if protocol is None and not others:
        written += ["There is no table to show.", ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(written)).rstrip() + "\n"


def state_words(sweep: Sweep) -> str:
    """Name, scale, and how many cells are done, failed or waiting."""
    counts = {state: sweep.count(state) for state in STATES}
    cells = ", ".join(f"{number} {state}" for state, number in counts.items() if number or state == "done")
    scale = f", scale {sweep.scale}" if sweep.scale else ""
    if not sweep.cells:
        return f"{sweep.name}{scale}"
    return f"{sweep.name}{scale}: of {counted(len(sweep.cells), 'cell')}, {cells}."


def csv(results: Mapping[str, Any]) -> str:
    """The same as lines of comma-separated values, header first, numbers in full; empty is what is missing.

    protocol, adversary, row, column, value, statistic, ours, published, difference; then an axis that is not laid out,
    if there is one, a field each. Lines on a training have no protocol, adversary and row.
    """
    sweep = sweep_of(results)
    parts = list(slices(sweep, sweep.rows, sweep.columns))
    others = [name for name, _ in parts[0].at] if parts else []
    rows: list[Sequence[object]] = [(*LEADING, "ours", "published", "difference", *others)]
    for part in parts:
        columns = tuple(points(sweep.columns))
        tail = [point for _, point in part.at]
        for line in training_lines(sweep, part, columns):
            rows += _csv_lines(("", ""), line, [column.name for column in columns], tail)
    for block in blocks(sweep):
        tail = [point for _, point in block.slice.at]
        names = [column.name for column in block.columns]
        for line in block.lines:
            rows += _csv_lines((block.protocol.name, block.adversary), line, names, tail)
    return _written(rows)


def cells_csv(results: Mapping[str, Any]) -> str:
    """The long form: a line for each cell, adversary and score, with its mean, best, std and number of images.

    A cell without attacks (it failed, or waits) has one line. The fields of the axes come first.
    """
    sweep = sweep_of(results)
    axes = [axis.name for axis in sweep.axes]
    training = list(dict.fromkeys(key for cell in sweep.cells if cell.training for key in cell.training.values))
    header = (
        *axes,
        *("status", "adversary", "attack_status", "iterations", "value", "lpips_net", *STATISTICS, "images"),
        *("seconds", *(f"training_{key}" for key in training), "folder", "note"),
    )
    rows: list[Sequence[object]] = [header]
    for cell in sweep.cells:
        head = [*(cell.at.get(axis, "") for axis in axes), cell.status]
        trained = [_number(cell.training.values.get(key) if cell.training else None) for key in training]
        tail = [_number(cell.seconds), *trained, cell.folder]
        if not cell.attacks:
            rows.append([*head, *[""] * 9, *tail, cell.error])
        for hit in cell.attacks:
            shared = [*head, hit.adversary, hit.status, "" if hit.iterations is None else hit.iterations]
            note = "; ".join(filter(None, (cell.error, hit.error, hit.lpips_note)))
            if not hit.values:
                rows.append([*shared, *[""] * 6, *tail, note])
            for value, score in hit.values.items():
                net = hit.lpips_net if value.startswith("lpips") else ""
                figures = [_number(score.of(statistic)) for statistic in STATISTICS]
                rows.append([*shared, value, net, *figures, "" if score.n is None else score.n, *tail, note])
    return _written(rows)


def _markdown_table(block: Block) -> list[str]:
    corner = block.rows_label or block.columns_label
    header = [corner, "", *(column.label for column in block.columns)]
    rows = ["| " + " | ".join(_escaped(cell) for cell in header) + " |", "|---|---|" + "---:|" * len(block.columns)]
    for line in (*block.training, *block.lines):
        first = line.measure.label if line.row is None else line.row.label
        rows += ["| " + " | ".join(_escaped(cell) for cell in cells) + " |" for cells in _stacked(line, first)]
    return rows


def _stacked(line: Line, first: str) -> list[list[str]]:
    """Ours, and below it, where anything is published, the published value and the difference."""
    write, signed = line.measure.write, line.measure.signed
    statistic = "" if line.row is None else line.statistic
    lines = [[first, statistic, *(entry.shown(write) for entry in line.entries)]]
    if line.compared:
        lines.append(["", "published", *(write(entry.published) for entry in line.entries)])
        lines.append(["", "difference", *(signed(entry.difference) for entry in line.entries)])
    return lines


def _csv_lines(
    head: tuple[str, str], line: Line, columns: Sequence[str], tail: Sequence[str]
) -> Iterable[Sequence[object]]:
    row = line.row.name if line.row else ""
    for column, entry in zip(columns, line.entries, strict=True):
        figures = [_number(number) for number in (entry.ours, entry.published, entry.difference)]
        yield [*head, row, column, line.value, line.statistic, *figures, *tail]


def _number(value: float | None) -> str:
    """Seven digits, and whole numbers without a point; empty where there is no finite number."""
    return "" if value is None or not math.isfinite(value) else f"{value:.7g}"


def _written(rows: Iterable[Sequence[object]]) -> str:
    content = io.StringIO()
    comma.writer(content, lineterminator="\n").writerows(rows)
    return content.getvalue()


def _escaped(words: str) -> str:
    """What Markdown or HTML would take for a mark of its own is shown as it is."""
    flat = " ".join(words.split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|*`]|(?<=\])[\[(])", r"\\\1", flat)
