"""The page of a sweep: one HTML file, with everything inside, from `results.json` and the cells' pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedsim.errors import FedsimError, InputError
from fedsim.report.cells import Cells
from fedsim.report.formats import counted
from fedsim.report.sweep_blocks import Block, Line, blocks
from fedsim.report.sweep_charts import any_rows, label_charts, line_charts
from fedsim.report.sweep_parts import matrices, planes
from fedsim.report.sweep_pictures import Album
from fedsim.report.sweep_reading import TITLES, Cell, Sweep, sweep_of
from fedsim.report.templates import template
from fedsim.runs import write_whole

HERE = Path(__file__).parent
RESULTS, PAGE = "results.json", "report.html"
MOST_ERRORS = 8
"""Failed cells that are named at the top; all are in cells.csv."""


@dataclass(frozen=True)
class TableView:
    """One block with its lines, as the template walks over them. `groups`: a row's label and its lines."""

    block: Block
    groups: Sequence[tuple[str, Sequence[Line]]]
    notes: Sequence[str]


@dataclass(frozen=True)
class Section:
    """A part of the page; only what belongs to its kind is there."""

    kind: str
    title: str
    tables: Sequence[tuple[str, Sequence[TableView]]] = ()
    matrices: Sequence[Any] = ()
    charts: Sequence[Any] = ()
    cells: Cells | None = None
    notes: Sequence[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return not (self.tables or self.matrices or self.charts or self.cells)


def write(folder: Path) -> Path:
    """Write `report.html` into a sweep's folder, whole or not at all, and return its path.

    The page loads nothing from anywhere. The same folder gives the same bytes.

    Raises:
        InputError: the folder has no readable `results.json`.
        FedsimError: the page cannot be written there.
    """
    folder = Path(folder)
    page = render(_results(folder), folder)
    path = folder / PAGE
    try:
        write_whole(path, page.encode("utf-8", errors="replace"))
    except OSError as error:
        raise FedsimError(
            f"{path}: cannot be written: {error.strerror or error}; is there room, and a right to?"
        ) from error
    return path


def render(results: Mapping[str, Any], folder: Path) -> str:
    """The page as text; `folder` is where the pictures are."""
    sweep = sweep_of(results)
    sections = [_section(kind, sweep, folder) for kind in dict.fromkeys(sweep.show)]
    failed = [trouble for cell in sweep.cells for trouble in _failures(sweep, cell)]
    return template("sweep.html").render(
        style=Markup("\n".join((HERE / name).read_text(encoding="utf-8") for name in ("style.css", "sweep.css"))),
        name=sweep.name,
        title=sweep.title or sweep.name,
        scale=sweep.scale,
        words=sweep.words,
        cells=counted(len(sweep.cells), "cell"),
        lead=_lead(sweep),
        axes=[(axis.label, [point.label for point in axis.points]) for axis in sweep.axes],
        failed=failed[:MOST_ERRORS],
        more_failed=max(0, len(failed) - MOST_ERRORS),
        waiting=sweep.count("waiting"),
        sections=sections,
    )


def _results(folder: Path) -> Mapping[str, Any]:
    path = folder / RESULTS
    try:
        results = json.loads(path.read_bytes().decode("utf-8", errors="replace"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: {reason}; is {folder} the folder of a sweep that has begun?") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON; run the sweep again with --out {folder} to have it written") from error
    if not isinstance(results, Mapping):
        raise InputError(f"{path}: holds no results; run the sweep again with --out {folder} to have them written")
    return results


def _section(kind: str, sweep: Sweep, folder: Path) -> Section:
    title = TITLES.get(kind, kind)
    if kind == "table":
        return Section(kind, title, tables=_tables(sweep))
    if kind == "pictures":
        return Section(kind, title, matrices=list(matrices(sweep, Album(folder))))
    if kind == "plane":
        return Section(kind, title, charts=[chart for chart in planes(sweep) if chart.drawing])
    if kind == "lines":
        return Section(kind, title, charts=[chart for chart in line_charts(sweep) if chart.drawing])
    notes = sweep.part_notes.get(kind, ())
    if kind == "labels":
        return Section(kind, title, charts=[chart for chart in label_charts(sweep) if chart.drawing], notes=notes)
    if kind in ("costs", "assumptions"):
        return Section(kind, title, cells=any_rows(title, sweep.parts.get(kind)), notes=notes)
    return Section(kind, title, notes=[f"This version of fedsim knows no part named {kind}."])


def _tables(sweep: Sweep) -> list[tuple[str, list[TableView]]]:
    """The tables by protocol; a note that stood below an earlier table of the protocol is not said again."""
    found: dict[str, list[TableView]] = {}
    said: dict[str, set[str]] = {}
    for block in blocks(sweep):
        protocol = block.protocol.name
        fresh = [note for note in block.notes if note not in said.setdefault(protocol, set())]
        said[protocol].update(fresh)
        groups: dict[str, list[Line]] = {}
        for line in block.lines:
            groups.setdefault(line.row.label if line.row else "", []).append(line)
        found.setdefault(protocol, []).append(TableView(block, list(groups.items()), fresh))
    return [(views[0].block.protocol.label, views) for views in found.values()]


def _lead(sweep: Sweep) -> str:
    done, failed, waiting = (sweep.count(state) for state in ("done", "failed", "waiting"))
    total = counted(len(sweep.cells), "cell")
    if not sweep.cells:
        return ""
    if done == len(sweep.cells):
        return f"All {total} are done." if done > 1 else f"{total[:1].upper()}{total[1:]}, done."
    rest = [f"{number} {state}" for number, state in ((failed, "failed"), (waiting, "waiting")) if number]
    return f"{done} of {total} done, {', '.join(rest)}."


def _failures(sweep: Sweep, cell: Cell) -> Iterator[tuple[str, str]]:
    """Where and why a cell failed, or attacks in it."""
    if cell.status == "failed":
        yield _where(sweep, cell), cell.error or "no reason is recorded"
    for hit in cell.attacks:
        if hit.status == "failed":
            yield f"{_where(sweep, cell)}, {sweep.label(hit.adversary)}", hit.error or "no reason is recorded"


def _where(sweep: Sweep, cell: Cell) -> str:
    """A cell's place, in the labels of its points."""
    parts = []
    for axis in sweep.axes:
        name = cell.at.get(axis.name, "")
        parts.append(f"{axis.label} {next((point.label for point in axis.points if point.name == name), name)}")
    return ", ".join(parts) or cell.folder or "a cell"
