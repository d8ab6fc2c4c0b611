"""Two parts of a sweep's page: the pictures, and the plane of utility and privacy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fedsim.report.cells import Cells
from fedsim.report.formats import MISSING, counted, fixed, listed, percent
from fedsim.report.planes import Mark, plane
from fedsim.report.sweep_blocks import strongest
from fedsim.report.sweep_charts import Chart
from fedsim.report.sweep_measures import measure
from fedsim.report.sweep_pictures import Album
from fedsim.report.sweep_reading import Cell, Point, Protocol, Slice, Sweep, points, slices

IMAGES, FEW_IMAGES, MANY_CELLS = 4, 2, 80
"""How many images a cell shows, and how many where there are more cells than this."""
LEAKAGES = ("lpips", "ssim", "psnr")
"""What the plane shows as leakage, in order of preference."""


@dataclass(frozen=True)
class Picture:
    """A cell's reconstructions, or why there are none, and their score."""

    source: str
    images: int
    alt: str
    score: str
    problem: str


@dataclass(frozen=True)
class Matrix:
    """The pictures of an adversary, rows by columns."""

    title: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Picture]]]
    notes: Sequence[str]


def matrices(sweep: Sweep, album: Album) -> Iterator[Matrix]:
    """The pictures, a matrix for each adversary and each choice of the axes that are not laid out."""
    known = dict.fromkeys(hit.adversary for cell in sweep.cells for hit in cell.attacks if hit.pictures)
    most = IMAGES if len(sweep.cells) * len(known) <= MANY_CELLS else FEW_IMAGES
    for part in slices(sweep, sweep.rows, sweep.columns):
        for adversary in known:
            hit_cells = [cell for cell in part.cells.values() if cell.hit(adversary)]
            if not hit_cells:
                continue
            columns = [
                column
                for column in points(sweep.columns)
                if any(part.cell(row.name, column.name) in hit_cells for row in points(sweep.rows))
            ]
            before = album.left_out
            rows = [
                (
                    row.label,
                    [
                        _picture(part.cell(row.name, column.name), adversary, row, column, album, most)
                        for column in columns
                    ],
                )
                for row in points(sweep.rows)
            ]
            nets = sorted({hit.lpips_net for cell in hit_cells if (hit := cell.hit(adversary)) and hit.lpips_net})
            notes = (
                [f"LPIPS by {listed(nets)}: the mean over the cell's images; lower means more leaked."] if nets else []
            )
            if album.left_out > before:
                number = counted(album.left_out - before, "picture")
                notes.append(f"{number} left out, for the page would grow too large; they are in the cells' folders.")
            title = " · ".join(words for words in (sweep.label(adversary), part.words) if words)
            corner = sweep.rows.label if sweep.rows else ""
            yield Matrix(title, corner, [column.label for column in columns], rows, notes)


def _picture(cell: Cell | None, adversary: str, row: Point, column: Point, album: Album, most: int) -> Picture:
    hit = cell.hit(adversary) if cell else None
    if cell is None or hit is None:
        return Picture("", 0, "", "", "failed" if cell and cell.status == "failed" else MISSING)
    source, images, problem = album.strip(hit.pictures, most)
    score = ""
    for value in LEAKAGES:
        if (found := hit.values.get(value)) and found.mean is not None:
            score = f"{measure(value).label} {measure(value).write(found.mean)}"
            break
    where = ", ".join(part for part in (row.label, column.label) if part)
    alt = (
        f"{where}: {counted(images, 'private image')} above, what {adversary} made of them below; {score or 'no score'}"
    )
    return Picture(source, images, alt, score, problem)


def planes(sweep: Sweep) -> Iterator[Chart]:
    """What each column's training costs in accuracy against what leaks, for each protocol."""
    for protocol in sweep.protocols:
        for part in slices(sweep, sweep.rows, sweep.columns):
            yield _plane(sweep, protocol, part)


def _plane(sweep: Sweep, protocol: Protocol, part: Slice) -> Chart:
    found = {value: list(_leaks(sweep, protocol, part, value)) for value in LEAKAGES}
    value = next((value for value in LEAKAGES if found[value]), LEAKAGES[0])
    said = measure(value)
    # Of LPIPS less is more leaked, so it is turned round; the others rise with leakage.
    turn: Callable[[float], float] = (lambda mean: 1 - mean) if said.sign < 0 else (lambda mean: mean)
    nets = sorted({net for *_, net in found[value] if net}) if value == "lpips" else []
    words = (f"1 − {said.label}" if said.sign < 0 else said.label) + (f" ({', '.join(nets)})" if nets else "")
    kinds = [f"{sweep.rows.label} {row.label}" if sweep.rows else "all cells" for row in points(sweep.rows)]
    marks, rows = [], []
    for row, column, accuracy, mean, adversary, _ in found[value]:
        leak = turn(mean)
        kind = [point.name for point in points(sweep.rows)].index(row.name)
        told = f"{column.label}, {kinds[kind]}: test accuracy {percent(accuracy)}, {words} {fixed(leak)} ({adversary})"
        marks.append(Mark(column.label, kind, accuracy, leak, told))
        rows.append((column.label, row.label or MISSING, percent(accuracy), fixed(leak), adversary))
    title = " · ".join(part for part in (protocol.label, part.words) if part)
    notes = []
    if len(protocol.adversaries) > 1 and rows:
        notes.append("Each mark is of the adversary that leaks most there, among those of this protocol.")
    if value.startswith("lpips") and protocol.key(value) != value and rows:
        notes.append(
            "By the published scoring, columns with and without an encoding are not comparable with each other."
        )
    missing = len([cell for cell in part.cells.values() if cell.status == "done"]) - len(rows)
    if missing > 0:
        notes.append(
            f"{counted(missing, 'cell')} without a mark: no {said.label}, or no test accuracy of its training."
        )
    header = (
        sweep.columns.label if sweep.columns else "column",
        sweep.rows.label if sweep.rows else "row",
        "test accuracy",
        f"leakage: {words}",
        "adversary",
    )
    drawing = plane(
        marks,
        name=f"{title}: leakage, {words}, against test accuracy; {counted(len(marks), 'mark')}. "
        "Lower and further right is better.",
        kinds=kinds,
        x_label="test accuracy of the training",
        y_label=f"leakage: {words}",
        better="better: accurate, and little leaks",
    )
    return Chart(title, drawing, Cells(title, header, (False, False, True, True, False), tuple(rows)), notes)


def _leaks(
    sweep: Sweep, protocol: Protocol, part: Slice, value: str
) -> Iterator[tuple[Point, Point, float, float, str, str]]:
    """Row, column, test accuracy, mean score, the adversary that leaks most, and its LPIPS network."""
    for column in points(sweep.columns):
        for row in points(sweep.rows):
            cell = part.cell(row.name, column.name)
            accuracy = cell.training.values.get("test_accuracy") if cell and cell.training else None
            best = strongest(cell, protocol, value) if cell else None
            if best and accuracy is not None and math.isfinite(accuracy):
                hit, mean = best
                yield row, column, accuracy, mean, sweep.label(hit.adversary), hit.lpips_net
