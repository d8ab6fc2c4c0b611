"""Parts of a sweep's page that go along an axis of numbers, and tables of any rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedsim.report.cells import Cells
from fedsim.report.charts import Point as Place
from fedsim.report.curves import Curve, curves, even
from fedsim.report.formats import MISSING, fixed, listed, percent, plain, significant, whole
from fedsim.report.sweep_measures import measure
from fedsim.report.sweep_reading import TITLES, Cell, Point, Sweep, points, slices
from fedsim.report.values import integer, real, strings, table, tables, text

STEPS = "The steps of the axis below are even, whatever their numbers."


@dataclass(frozen=True)
class Chart:
    """A chart with its numbers in a table for those who cannot see it."""

    title: str
    drawing: Markup | None
    cells: Cells
    notes: Sequence[str] = ()


def line_charts(sweep: Sweep) -> Iterator[Chart]:
    """A value over an axis whose points are numbers, a line for each point of another axis, a chart an adversary.

    As the sweep's `[chart]` says: `x` and `lines` name axes, `y` a value of the attacks or of the training.
    """
    x, y = sweep.axis(text(sweep.chart.get("x"))), text(sweep.chart.get("y"))
    if x is None or not y:
        return
    by = sweep.axis(text(sweep.chart.get("lines")))
    places = {point.name: place for point in x.points if (place := _numeric(point)) is not None}
    said = measure(y)
    known = list(dict.fromkeys(hit.adversary for cell in sweep.cells for hit in cell.attacks if y in hit.values))
    of_training = not known
    for part in slices(sweep, by, x):
        for adversary in known or [""]:
            drawn, rows = [], []
            for kind, line in enumerate(points(by)):
                line_points: list[Place] = []
                for point, place in places.items():
                    value = _value(part.cell(line.name, point), adversary, y, of_training)
                    if value is not None and math.isfinite(value):
                        line_points.append((place, value))
                    rows.append((line.label or MISSING, f"{place:g}", said.write(value)))
                drawn.append(Curve(line.label or said.label, line_points, kind))
            title = " · ".join(words for words in (sweep.label(adversary), part.words) if words) or said.label
            nets = {hit.lpips_net for cell in part.cells.values() if (hit := cell.hit(adversary)) and hit.lpips_net}
            measured = said.label + (f" ({', '.join(sorted(nets))})" if nets and y.startswith("lpips") else "")
            notes = [STEPS] if even(list(places.values())) else []
            if said.sign:
                notes.append(f"{said.label}: {'higher' if said.sign > 0 else 'lower'} means more leaked.")
            drawing = curves(
                drawn, name=f"{title}: {measured} over {x.label}", x_label=x.label, y_label=measured, written=said.write
            )
            header = (by.label if by else "line", x.label, measured)
            yield Chart(title, drawing, Cells(title, header, (False, True, True), tuple(rows)), notes)


def _numeric(point: Point) -> float | None:
    """The number that a point's name is; None where it is none."""
    try:
        number = float(point.name)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _value(cell: Cell | None, adversary: str, value: str, of_training: bool) -> float | None:
    if cell is None:
        return None
    if of_training:
        return cell.seconds if value == "seconds" else cell.training.values.get(value) if cell.training else None
    hit = cell.hit(adversary)
    score = hit.values.get(value) if hit else None
    return score.mean if score else None


def label_charts(sweep: Sweep) -> Iterator[Chart]:
    """How labels fall in batches: the share of batches without two alike, and how many images share the commonest."""
    found = [entry for entry in tables(sweep.parts.get("labels")) if real(entry.get("batch")) is not None]
    sets = list(dict.fromkeys(_whose(entry) for entry in found))
    if not found:
        return
    for title, read, is_share in (
        ("Batches in which all labels differ", _distinct, True),
        ("Images of a batch that share its commonest label, on average", _commonest, False),
    ):
        drawn, rows = [], []
        for kind, whose in enumerate(sets):
            entries = [entry for entry in found if _whose(entry) == whose]
            values = [(float(entry["batch"]), read(entry)) for entry in entries]
            drawn.append(Curve(whose, [(x, y) for x, y in values if y is not None], kind))
            rows += [
                (whose or MISSING, f"{batch:g}", percent(value) if is_share else fixed(value, 2))
                for batch, value in values
            ]
        drawing = curves(
            drawn,
            name=f"{title}, by batch size",
            x_label="batch size",
            y_label="share of batches" if is_share else "images",
            written=percent if is_share else fixed,
            percent=is_share,
        )
        header = ("drawn", "batch size", "share" if is_share else "images")
        notes = [STEPS] if even([float(entry["batch"]) for entry in found]) else []
        yield Chart(title, drawing, Cells(title, header, (False, True, True), tuple(rows)), notes)


def _whose(entry: Mapping[str, object]) -> str:
    return text(entry.get("label")) or text(entry.get("name")) or text(entry.get("kind"))


def _distinct(entry: Mapping[str, object]) -> float | None:
    return real(entry.get("distinct_share"))


def _commonest(entry: Mapping[str, object]) -> float | None:
    """Stated, or else from the histogram: by how many images share the commonest label, how many batches."""
    stated = real(entry.get("commonest_mean"))
    if stated is not None:
        return stated
    histogram = entry.get("histogram")
    pairs = table(histogram).items() if isinstance(histogram, Mapping) else enumerate(_listed(histogram))
    counted_ = [(key, real(count)) for key, count in pairs]
    weights = [
        (number, count) for key, count in counted_ if count is not None and (number := _as_number(key)) is not None
    ]
    total = sum(count for _, count in weights)
    return sum(number * count for number, count in weights) / total if total > 0 and math.isfinite(total) else None


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def _as_number(key: object) -> int | None:
    try:
        return int(str(key))
    except ValueError:
        return None


def part_tables(sweep: Sweep) -> Iterator[tuple[Cells, Sequence[str]]]:
    """The parts that are not made of cells, as tables with notes, for where nothing is drawn."""
    for kind in dict.fromkeys(sweep.show):
        notes = sweep.part_notes.get(kind, ())
        if kind == "labels":
            yield from ((chart.cells, notes) for chart in label_charts(sweep))
        elif kind in ("costs", "assumptions") and (cells := any_rows(TITLES[kind], sweep.parts.get(kind))):
            yield cells, notes


def any_rows(title: str, value: object) -> Cells | None:
    """Any list of tables as one table: a column for each key, in the order in which keys first appear."""
    entries = [entry for entry in tables(value) if entry]
    keys = list(dict.fromkeys(key for entry in entries for key in entry))
    if not keys:
        return None
    numeric = tuple(
        any(real(entry.get(key)) is not None for entry in entries)
        and all(entry.get(key) is None or real(entry.get(key)) is not None for entry in entries)
        for key in keys
    )
    rows = tuple(tuple(_any_value(entry.get(key)) for key in keys) for entry in entries)
    return Cells(title, tuple(str(key).replace("_", " ") for key in keys), numeric, rows)


def _any_value(value: object) -> str:
    if value is None or value == "":
        return MISSING
    if isinstance(value, list | tuple) and value and len(strings(value)) == len(value):
        return listed(list(strings(value)))
    number = real(value)
    if number is None:
        return plain(value)
    whole_number = integer(value) is not None or abs(number) >= 1e4
    return whole(number) if whole_number and abs(number) < 1e15 else significant(number, 4)
