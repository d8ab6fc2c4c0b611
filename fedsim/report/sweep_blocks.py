"""The table of a sweep, worked out: by protocol, adversary and score, what came out beside what is published.

Markdown, CSV, the terminal and the page all show these blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from fedsim.report.formats import counted, listed, whole
from fedsim.report.sweep_measures import Measure, measure
from fedsim.report.sweep_reading import STATISTICS, Cell, Hit, Point, Protocol, Slice, Sweep, numbers, points, slices

PUBLISHED_NET = "vgg"
"""The LPIPS network of the published evaluation that sweeps compare with."""

PAPER_WORDS = (
    "scored as the published evaluation scores: LPIPS on images that are still normalised by the data set's mean and "
    "standard deviation. Without an encoding, each reconstruction counts with the private image of its batch that it "
    "is closest to, and one image may be taken more than once; under MixUp and InstaHide, reconstructions are "
    "stretched to [0, 1] and compared with the image of the same index. Columns with and without an encoding are "
    "therefore not comparable with each other; use these numbers only beside the published ones."
)
CORRECTED_WORDS = (
    "scored the same way in every column: images in [0, 1], LPIPS with its own normalisation, each reconstruction "
    "compared with one private image of its batch and no image twice (the assignment of least squared error in all; "
    "where the adversary knows which image it reconstructs, with that one)."
)
MIXED_PROTOCOLS = (
    "The published values were scored as the published evaluation scores, so a difference to them is one of the attack "
    "and of the scoring together."
)


@dataclass(frozen=True)
class Entry:
    """One place of a table. state: `failed` or `waiting` where that is why nothing came out."""

    ours: float | None = None
    published: float | None = None
    state: str = ""

    @property
    def difference(self) -> float | None:
        """Ours minus the published value, where there are both."""
        if self.ours is None or self.published is None:
            return None
        return self.ours - self.published

    def shown(self, write: Callable[[float | None], str]) -> str:
        """Our value as a cell of a table."""
        return "failed" if self.ours is None and self.state == "failed" else write(self.ours)


@dataclass(frozen=True)
class Line:
    """A line of a table: a statistic of a score in one row of the grid, or (without a row) a value of the training."""

    row: Point | None
    statistic: str
    measure: Measure
    value: str
    entries: tuple[Entry, ...]

    @property
    def compared(self) -> bool:
        """Whether anything is published to stand beside it."""
        return any(entry.published is not None for entry in self.entries)


@dataclass(frozen=True)
class Block:
    """One table. heading: `LPIPS (squeeze)` or the like; notes: what must be known to read it."""

    slice: Slice
    protocol: Protocol
    adversary: str
    label: str
    value: str
    heading: str
    rows_label: str
    columns_label: str
    columns: tuple[Point, ...]
    training: tuple[Line, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    @property
    def compared(self) -> bool:
        """Whether published values stand in it."""
        return any(line.compared for line in (*self.training, *self.lines))

    @property
    def caption(self) -> str:
        """The block's name in a line."""
        parts = [self.protocol.label, self.slice.words, self.label, self.heading]
        return " · ".join(part for part in parts if part)


def blocks(sweep: Sweep) -> Iterator[Block]:
    """Every table of the sweep: by protocol, by what is not laid out, by adversary, by score.

    The values of the training stand in the first table of each adversary.
    """
    for protocol in sweep.protocols:
        for part in slices(sweep, sweep.rows, sweep.columns):
            for adversary in protocol.adversaries:
                columns = _columns(sweep, part, adversary)
                if not columns:
                    continue
                for index, value in enumerate(_values(sweep, protocol, adversary)):
                    block = _block(sweep, protocol, part, adversary, columns, value)
                    yield block if index == 0 else replace(block, training=())


def training_lines(sweep: Sweep, part: Slice, columns: Sequence[Point]) -> tuple[Line, ...]:
    """The values of each column's training; the mean where its rows were trained apart."""
    lines = []
    for value in sweep.training:
        entries = []
        for column in columns:
            found = numbers(_trainings(sweep, part, column, value).values())
            ours = sum(found) / len(found) if found else None
            entries.append(Entry(ours, sweep.printed_training(value, column.name)))
        lines.append(Line(None, "training", measure(value), value, tuple(entries)))
    return tuple(lines)


def strongest(cell: Cell, protocol: Protocol, value: str) -> tuple[Hit, float] | None:
    """The adversary of the protocol that leaks most in this cell, by the mean of a score, and that mean."""
    sign = measure(value).sign or 1
    found = []
    for adversary in protocol.adversaries:
        hit = cell.hit(adversary)
        score = hit.values.get(protocol.key(value)) if hit else None
        if hit and score and score.mean is not None and math.isfinite(score.mean):
            found.append((hit, score.mean))
    return max(found, key=lambda one: sign * one[1]) if found else None


def _values(sweep: Sweep, protocol: Protocol, adversary: str) -> list[str]:
    """The scores of a protocol's tables: of one that scores otherwise, not those that another protocol shows alike."""
    plain = [
        other for other in sweep.protocols if adversary in other.adversaries and other.score in ("", *sweep.values)
    ]
    if not plain or protocol in plain:
        return list(sweep.values)
    return [value for value in sweep.values if protocol.key(value) != value or value in sweep.published]


def _columns(sweep: Sweep, part: Slice, adversary: str) -> tuple[Point, ...]:
    """The columns that the adversary attacks, or may yet: those whose cells are done without it are left out."""

    def open_to(column: Point) -> bool:
        cells = _column(sweep, part, column)
        return any(cell.hit(adversary) for cell in cells) or all(cell.status != "done" for cell in cells)

    kept = tuple(column for column in points(sweep.columns) if open_to(column))
    met = any(cell.hit(adversary) for cell in part.cells.values())
    return kept if met or len(kept) == len(points(sweep.columns)) else ()


def _column(sweep: Sweep, part: Slice, column: Point) -> list[Cell]:
    return [cell for row in points(sweep.rows) if (cell := part.cell(row.name, column.name))]


def _trainings(sweep: Sweep, part: Slice, column: Point, value: str) -> dict[str, float | None]:
    """A value of each of the column's trainings, by hash."""
    trainings = [cell.training for cell in _column(sweep, part, column) if cell.training]
    return {training.hash or str(index): training.values.get(value) for index, training in enumerate(trainings)}


def _block(
    sweep: Sweep, protocol: Protocol, part: Slice, adversary: str, columns: tuple[Point, ...], value: str
) -> Block:
    lines = []
    for row in points(sweep.rows):
        for statistic in STATISTICS:
            entries = []
            for column in columns:
                cell = part.cell(row.name, column.name)
                printed = sweep.printed(value, statistic, row.name, column.name)
                entries.append(_entry(cell, adversary, protocol.key(value), statistic, printed))
            line = Line(row, statistic, measure(value), value, tuple(entries))
            # Numbers that are not per image have a mean alone.
            if statistic == "mean" or line.compared or any(entry.ours is not None for entry in entries):
                lines.append(line)
    hits = [hit for cell in part.cells.values() if (hit := cell.hit(adversary))]
    nets = _nets(hits, protocol.key(value)) if value.startswith("lpips") else []
    return Block(
        slice=part,
        protocol=protocol,
        adversary=adversary,
        label=_adversary(sweep, adversary, hits),
        value=value,
        heading=measure(value).label + (f" ({', '.join(nets)})" if nets else ""),
        rows_label=sweep.rows.label if sweep.rows else "",
        columns_label=sweep.columns.label if sweep.columns else "",
        columns=columns,
        training=training_lines(sweep, part, columns),
        lines=tuple(lines),
        notes=tuple(_notes(sweep, protocol, part, adversary, columns, value, lines, nets)),
    )


def _entry(cell: Cell | None, adversary: str, key: str, statistic: str, printed: float | None) -> Entry:
    if cell is None:
        return Entry(published=printed, state="waiting")
    hit = cell.hit(adversary)
    score = hit.values.get(key) if hit else None
    state = cell.status if cell.status != "done" else ""
    if hit and not hit.values and hit.status == "failed":
        state = "failed"
    return Entry(score.of(statistic) if score else None, printed, state)


def _adversary(sweep: Sweep, adversary: str, hits: Sequence[Hit]) -> str:
    """The adversary's label with its iterations, which published attacks may have had more of."""
    iterations = sorted({hit.iterations for hit in hits if hit.iterations})
    label = sweep.label(adversary)
    if not iterations:
        return label
    span = whole(iterations[0]) if len(iterations) == 1 else f"{whole(iterations[0])} to {whole(iterations[-1])}"
    return f"{label} ({span} iterations)"


def _nets(hits: Sequence[Hit], key: str) -> list[str]:
    return sorted({hit.lpips_net for hit in hits if hit.lpips_net and key in hit.values})


def _notes(
    sweep: Sweep,
    protocol: Protocol,
    part: Slice,
    adversary: str,
    columns: Sequence[Point],
    value: str,
    lines: Sequence[Line],
    nets: Sequence[str],
) -> Iterator[str]:
    label, key = measure(value).label, protocol.key(value)
    compared = any(line.compared for line in lines)
    if value.startswith("lpips") and key != "lpips":
        yield f"{protocol.label}: {protocol.words or PAPER_WORDS}"
    else:
        yield f"{protocol.label}: {protocol.words or CORRECTED_WORDS}"
        if compared:
            yield MIXED_PROTOCOLS
    if sign := measure(value).sign:
        yield f"{label}: {'higher' if sign > 0 else 'lower'} means more leaked; best is the image that leaked most."
    if nets and compared and nets != [PUBLISHED_NET]:
        yield (
            f"The published LPIPS is by {PUBLISHED_NET.upper()}, ours by {listed(list(nets))}: values of different "
            "networks are not on one scale."
        )
    if len(nets) > 1:
        yield "Values of different networks stand in this table and cannot be compared with one another."
    shown = {column.name for column in columns}
    cells = [cell for (_, column), cell in part.cells.items() if column in shown]
    hits = [hit for cell in cells if (hit := cell.hit(adversary))]
    if compared and any(score.std is not None for hit in hits if (score := hit.values.get(key))):
        yield "std is over images (of the population), and not over repetitions."
    counts = sorted({score.n for hit in hits if (score := hit.values.get(key)) and score.n})
    if counts:
        span = counted(counts[0], "image") if len(counts) == 1 else f"{counts[0]} to {counted(counts[-1], 'image')}"
        yield f"Ours are over {span} a cell."
    missing = [hit for hit in hits if key not in hit.values]
    reasons = (
        list(dict.fromkeys(hit.lpips_note for hit in missing if hit.lpips_note)) if key.startswith("lpips") else []
    )
    for reason in reasons:
        yield f"{label} {reason}"
    if missing and not reasons:
        yield f"{label} is not recorded for {counted(len(missing), 'cell')}."
    partly = sum(hit.status == "failed" and key in hit.values for hit in hits)
    if partly:
        yield f"In {counted(partly, 'cell')} some attacks failed: scores there are over the others alone."
    if any(entry.state == "failed" for line in lines for entry in line.entries):
        yield "failed: what went wrong stands in cells.csv and in the cell's folder."
    left_out = [column.label for column in points(sweep.columns) if column not in columns]
    if left_out:
        yield f"Not attacked by this adversary: {', '.join(left_out)}."
    for training in sweep.training:
        apart = [column.label for column in columns if len(set(_trainings(sweep, part, column, training).values())) > 1]
        if apart:
            yield f"{measure(training).label}: the mean of the rows' own trainings in {', '.join(apart)}."
