"""The results of a sweep, read with patience: what is not as it should be becomes None, or nothing, and shows as `-`.

`results.json` of a sweep's folder is all that tables and the page are made of. A sweep that still runs, that failed in
parts, or that a later version wrote, must be shown as far as it goes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedsim.report.values import Table, integer, real, strings, table, tables, text

STATISTICS = ("mean", "best", "std")
STATES = ("done", "failed", "waiting")
TITLES = {
    "table": "The table",
    "pictures": "Reconstructions",
    "plane": "Utility and privacy",
    "lines": "By setting",
    "labels": "Labels in a batch",
    "costs": "What an end-to-end recovery costs",
    "assumptions": "What each attack assumes",
}
"""The parts that a page can have."""


@dataclass(frozen=True)
class Point:
    """A value of an axis. `label` is shown."""

    name: str
    label: str


@dataclass(frozen=True)
class Axis:
    """One dimension of the grid."""

    name: str
    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Score:
    """A score over `n` images; `best` is that of the image that leaked most, `std` the population's."""

    mean: float | None = None
    best: float | None = None
    std: float | None = None
    n: int | None = None

    def of(self, statistic: str) -> float | None:
        """`mean`, `best` or `std`."""
        return {"mean": self.mean, "best": self.best, "std": self.std}.get(statistic)


@dataclass(frozen=True)
class Hit:
    """What an adversary did to a cell."""

    adversary: str
    label: str
    n: int | None
    values: Mapping[str, Score]
    lpips_net: str
    lpips_note: str
    iterations: int | None
    pictures: tuple[str, ...]
    status: str
    error: str = ""
    combined: bool = False


@dataclass(frozen=True)
class Training:
    """The training of the model that a cell attacks. `values` holds every number of it, by name."""

    hash: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Cell:
    """One experiment of the grid. `at`: by axis, the name of the point."""

    at: Mapping[str, str]
    folder: str
    status: str
    error: str
    seconds: float | None
    training: Training | None
    attacks: tuple[Hit, ...]

    def hit(self, adversary: str) -> Hit | None:
        """What this adversary did here, if it was here.

        Several answers of one adversary are called "ID-NAME"; where it failed there is none, and its failure is theirs.
        """
        found = next((hit for hit in self.attacks if hit.adversary == adversary), None)
        whole = (hit for hit in self.attacks if hit.combined and hit.status == "failed")
        return found or next((hit for hit in whole if adversary.startswith(f"{hit.adversary}-")), None)


@dataclass(frozen=True)
class Protocol:
    """A way of scoring, as a table of its own. `score`: the key that stands for its LPIPS. `words`: the file's own."""

    name: str
    label: str
    adversaries: tuple[str, ...]
    score: str
    words: str

    def key(self, value: str) -> str:
        """Which of an attack's values this protocol shows as `value`."""
        return self.score if self.score == value or self.score.startswith(f"{value}_") else value


@dataclass(frozen=True)
class Sweep:
    """A whole sweep. `rows` and `columns` are None where the file names no such axis."""

    name: str
    title: str
    scale: str
    words: str
    show: tuple[str, ...]
    axes: tuple[Axis, ...]
    rows: Axis | None
    columns: Axis | None
    values: tuple[str, ...]
    training: tuple[str, ...]
    baseline: str
    protocols: tuple[Protocol, ...]
    published: Table
    cells: tuple[Cell, ...]
    chart: Table
    parts: Table = field(repr=False)
    part_notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def count(self, status: str) -> int:
        """How many cells are done, failed or waiting."""
        return sum(cell.status == status for cell in self.cells)

    def axis(self, name: str) -> Axis | None:
        """An axis by its name."""
        return next((axis for axis in self.axes if axis.name == name), None)

    def at(self, **places: str) -> list[Cell]:
        """The cells at these points."""
        return [cell for cell in self.cells if all(cell.at.get(axis) == point for axis, point in places.items())]

    def label(self, adversary: str) -> str:
        """An adversary's label, or else its id."""
        hits = (hit for cell in self.cells if (hit := cell.hit(adversary)))
        return next((hit.label for hit in hits if hit.label), adversary)

    def printed(self, value: str, statistic: str, row: str, column: str) -> float | None:
        """A published score."""
        return real(table(table(table(self.published.get(value)).get(statistic)).get(row)).get(column))

    def printed_training(self, value: str, column: str) -> float | None:
        """A published value of a column's training."""
        return real(table(table(self.published.get("training")).get(value)).get(column))


@dataclass(frozen=True)
class Slice:
    """The part of a sweep with one point of each axis that is not laid out, and so one cell a place."""

    words: str
    at: tuple[tuple[str, str], ...]
    cells: Mapping[tuple[str, str], Cell]

    def cell(self, row: str, column: str) -> Cell | None:
        """The cell of a row and a column."""
        return self.cells.get((row, column))


def sweep_of(results: Mapping[str, Any]) -> Sweep:
    """A sweep from the content of its `results.json`. Nothing in it can make this fail."""
    laid_out = table(results.get("table"))
    axes = tuple(axis for entry in tables(results.get("axes")) if (axis := _axis(entry)).name)
    cells = tuple(_cell(entry) for entry in tables(results.get("cells")))
    cells = _as_attackers(cells, tables(laid_out.get("attackers")))
    by_name = {axis.name: axis for axis in axes}
    return Sweep(
        name=text(results.get("name")) or "sweep",
        title=text(results.get("title")),
        scale=text(results.get("scale")),
        words=text(results.get("words")),
        show=strings(results.get("show")) if "show" in results else ("table",),
        axes=axes,
        rows=by_name.get(text(laid_out.get("rows"))),
        columns=by_name.get(text(laid_out.get("columns"))),
        values=strings(laid_out.get("values")),
        training=strings(laid_out.get("training")),
        baseline=text(laid_out.get("baseline")),
        protocols=_protocols(tables(laid_out.get("protocols")), cells),
        published=table(results.get("published")),
        cells=cells,
        chart=table(results.get("chart")) or table(laid_out.get("chart")),
        parts={key: results.get(key) for key in ("labels", "costs", "assumptions")},
        part_notes={key: strings(value) for key, value in table(results.get("notes")).items()},
    )


def slices(sweep: Sweep, rows: Axis | None, columns: Axis | None) -> Iterator[Slice]:
    """For each choice of the axes that are neither `rows` nor `columns`, the cells that are left."""
    others = [axis for axis in sweep.axes if axis not in (rows, columns) and axis.points]
    for choice in itertools.product(*(axis.points for axis in others)):
        at = tuple((axis.name, point.name) for axis, point in zip(others, choice, strict=True))
        cells: dict[tuple[str, str], Cell] = {}
        for cell in sweep.at(**dict(at)):
            place = tuple(cell.at.get(axis.name, "") if axis else "" for axis in (rows, columns))
            cells.setdefault((place[0], place[1]), cell)
        words = ", ".join(f"{axis.label} {point.label}" for axis, point in zip(others, choice, strict=True))
        yield Slice(words, at, cells)


def points(axis: Axis | None) -> Sequence[Point]:
    """An axis' points; without an axis, one without a name."""
    return axis.points if axis else (Point("", ""),)


def numbers(values: Iterable[float | None]) -> list[float]:
    """Those that are there and finite."""
    return [value for value in values if value is not None and math.isfinite(value)]


def _axis(entry: Table) -> Axis:
    name = text(entry.get("name"))
    named = [(text(point.get("name")), text(point.get("label"))) for point in tables(entry.get("points"))]
    label = text(entry.get("label")) or name.replace("_", " ")
    return Axis(name, label, tuple(Point(point, shown or point) for point, shown in named if point))


def _protocols(entries: Sequence[Table], cells: Sequence[Cell]) -> tuple[Protocol, ...]:
    everyone = tuple(dict.fromkeys(hit.adversary for cell in cells for hit in cell.attacks))
    found = [
        Protocol(
            name=text(entry.get("name")) or f"protocol {number}",
            label=text(entry.get("label")) or text(entry.get("name")) or f"Protocol {number}",
            adversaries=strings(entry.get("adversaries")) or everyone,
            score=text(entry.get("score")),
            words=text(entry.get("words")),
        )
        for number, entry in enumerate(entries, 1)
    ]
    return tuple(found) or (Protocol("corrected", "Scores", everyone, "", ""),)


def _as_attackers(cells: tuple[Cell, ...], attackers: Sequence[Table]) -> tuple[Cell, ...]:
    """Where attackers are named, what each of them did to a cell: the first of its adversaries that the cell has."""
    if not attackers:
        return cells
    out = []
    for cell in cells:
        found = []
        for entry in attackers:
            name = text(entry.get("name"))
            hits = (hit for one in strings(entry.get("adversaries")) if (hit := cell.hit(one)))
            first = next(hits, None)
            if first is not None:
                found.append(replace(first, adversary=name, label=text(entry.get("label")) or name))
        out.append(replace(cell, attacks=tuple(found)))
    return tuple(out)


def _cell(entry: Table) -> Cell:
    training = table(entry.get("training"))
    status = text(entry.get("status"))
    return Cell(
        at={str(axis): str(point) for axis, point in table(entry.get("at")).items()},
        folder=text(entry.get("folder")),
        status=status if status in STATES else "waiting",
        error=text(entry.get("error")),
        seconds=real(entry.get("seconds")),
        training=Training(text(training.get("hash")), _numbers(training)) if training else None,
        attacks=tuple(_hit(hit) for hit in tables(entry.get("attacks"))),
    )


def _hit(entry: Table) -> Hit:
    values = {str(key): _score(value) for key, value in table(entry.get("values")).items()}
    # Numbers that are not per image, such as the share of labels that were inferred, are values with a mean alone.
    alone = {key: Score(mean=value) for key, value in _numbers(entry).items() if key not in ("n", "iterations")}
    return Hit(
        adversary=text(entry.get("adversary")),
        label=text(entry.get("label")),
        n=integer(entry.get("n")),
        values=alone | {key: score for key, score in values.items() if score is not None},
        lpips_net=text(entry.get("lpips_net")),
        lpips_note=text(entry.get("lpips_note")),
        iterations=integer(entry.get("iterations")),
        pictures=strings(entry.get("pictures")),
        status=text(entry.get("status")),
        error=text(entry.get("error")),
        combined=entry.get("combined") is True,
    )


def _score(value: object) -> Score | None:
    if isinstance(value, Mapping):
        score = Score(real(value.get("mean")), real(value.get("best")), real(value.get("std")), integer(value.get("n")))
        return score if any(score.of(statistic) is not None for statistic in STATISTICS) else None
    number = real(value)
    return None if number is None else Score(mean=number)


def _numbers(entry: Table) -> dict[str, float]:
    return {str(key): number for key, value in entry.items() if (number := real(value)) is not None}
