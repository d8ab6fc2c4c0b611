"""A plane of two measures with labelled marks: what a defense costs against what it leaves to see.

Marks of one group (a column of the sweep) are joined by a faint line and labelled once; their shape and colour tell the
kind (a row). Labels are placed where they cover neither a mark nor another label, with a thin leader where they had to
move away.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedsim.report.charts import padded, tick, ticks
from fedsim.report.svg import hover, label, line, picture, tag

WIDTH, HEIGHT = 780.0, 480.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 20.0, 40.0, 62.0
LETTER, LINE = 6.7, 15.0
"""Width of a letter and height of a line of a label, roughly, in the chart's own units."""
KINDS = 6
"""Shapes and colours that there are; further kinds begin again."""
SIZE = 6.0
"""Half the width of a mark."""
WAY = 0.4
"""What a label pays for a pixel of distance to its mark, beside what it pays for covering others."""

CROSS = tuple(zip("hvhvhvhvhvh", (1, -1, 1, 1, 1, 1, -1, 1, -1, -1, -1), strict=True))
"""The way round a cross, in steps of a third of its width."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

Spot = tuple[float, float]
"""Where a mark lies."""


@dataclass(frozen=True)
class Mark:
    """A point of the plane. `words` is what a pointer that rests on it shows."""

    group: str
    kind: int
    x: float
    y: float
    words: str = ""


@dataclass(frozen=True)
class Label:
    """Where a group's label went: its baseline, its anchor, its box, and from which mark a leader must come, if one."""

    x: float
    y: float
    anchor: str
    box: Box
    leader: tuple[float, float] | None = None


def plane(
    marks: Sequence[Mark],
    *,
    name: str,
    kinds: Sequence[str],
    x_label: str,
    y_label: str,
    better: str = "",
    percent: bool = True,
) -> Markup | None:
    """The marks with their labels, a legend of the kinds, and an arrow to the lower right, named `better`.

    Args:
        marks: those that are not finite are left out.
        name: what the chart shows, in words.
        kinds: the names of the kinds, shown in the legend.
        x_label, y_label: what the axes measure.
        better: what lies in the lower right; empty where no direction is the better one.
        percent: x is a fraction, to be written as a percentage.

    Returns: the chart, or None without a mark.
    """
    drawn = [mark for mark in marks if math.isfinite(mark.x) and math.isfinite(mark.y)]
    if not drawn:
        return None
    x_low, x_high = _room([mark.x for mark in drawn], 0.02 if percent else 0.0)
    y_low, y_high = _room([mark.y for mark in drawn], 0.1)

    def at(mark: Mark) -> tuple[float, float]:
        return (
            LEFT + (mark.x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (mark.y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM),
        )

    parts: list[Markup] = []
    floor = HEIGHT - BOTTOM
    y_ticks, x_ticks = ticks(y_low, y_high, 6), ticks(x_low, x_high, 7)
    for value in y_ticks:
        y = floor - (value - y_low) / (y_high - y_low) * (floor - TOP)
        parts += [line(LEFT, y, WIDTH - RIGHT, y, "grid"), label(LEFT - 8, y + 4, tick(value, y_ticks), "tick", "end")]
    hundredfold = [100 * value for value in x_ticks] if percent else x_ticks
    for value, shown in zip(x_ticks, hundredfold, strict=True):
        x = LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        words = tick(shown, hundredfold) + (" %" if percent else "")
        parts += [line(x, TOP, x, floor, "grid"), label(x, floor + 18, words, "tick", "middle")]
    parts.append(line(LEFT, floor, WIDTH - RIGHT, floor, "base"))
    parts.append(label((LEFT + WIDTH - RIGHT) / 2, floor + 40, x_label, "axis", "middle"))
    parts.append(label(LEFT - 44, TOP - 24, y_label, "axis"))
    parts += _legend(kinds, sorted({mark.kind for mark in drawn}))
    if better:
        parts += _arrow(WIDTH - RIGHT, floor + 40, better)

    groups: dict[str, list[Mark]] = {}
    for mark in drawn:
        groups.setdefault(mark.group, []).append(mark)
    spots = {group: [at(mark) for mark in members] for group, members in groups.items()}
    for members in spots.values():
        if len(members) > 1:
            ordered = sorted(members, key=lambda spot: spot[1])
            parts.append(tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in ordered), class_="tie"))
    placed = place(spots, (LEFT, TOP, WIDTH - RIGHT, floor))
    for found in placed.values():
        if found.leader:
            x1, y1 = found.leader
            parts.append(line(x1, y1, *_nearest(found.box, x1, y1), "leader"))
    for mark in drawn:
        x, y = at(mark)
        parts.append(tag("g", hover(mark.words or mark.group), shape(mark.kind, x, y), class_="spot"))
    parts += [label(found.x, found.y, group, "called", found.anchor) for group, found in placed.items()]
    return picture(WIDTH, HEIGHT, name, *parts, class_="chart plane")


def shape(kind: int, x: float, y: float, size: float = SIZE) -> Markup:
    """A mark of this kind: circle, square, triangle, diamond, triangle on its head, cross."""
    style = f"p{kind % KINDS}"
    s, third = size, 2 * size / 3
    if kind % KINDS == 0:
        return tag("circle", cx=x, cy=y, r=s * 0.95, class_=style)
    if kind % KINDS == 1:
        return tag("rect", x=x - s * 0.85, y=y - s * 0.85, width=s * 1.7, height=s * 1.7, class_=style)
    paths = {
        2: f"M{x:.1f} {y - s:.1f}l{s:.1f} {1.8 * s:.1f}h{-2 * s:.1f}z",
        3: f"M{x:.1f} {y - 1.2 * s:.1f}l{s:.1f} {1.2 * s:.1f}l{-s:.1f} {1.2 * s:.1f}l{-s:.1f} {-1.2 * s:.1f}z",
        4: f"M{x:.1f} {y + s:.1f}l{s:.1f} {-1.8 * s:.1f}h{-2 * s:.1f}z",
        5: f"M{x - s:.1f} {y - third / 2:.1f}" + "".join(f"{step}{third * way:.1f}" for step, way in CROSS) + "z",
    }
    return tag("path", d=paths[kind % KINDS], class_=style)


def place(groups: dict[str, list[Spot]], inside: Box) -> dict[str, Label]:
    """A place for the label of each group of spots, near one of them.

    Greedy, the most crowded group first, then three times over with all the others in their places. Of the places
    around its spots a label takes the one that costs least: covering a label or a spot costs most, then lines that it
    crosses, then the way to its spot.
    """
    marks = [(x - SIZE - 1, y - SIZE - 1, x + SIZE + 1, y + SIZE + 1) for spots in groups.values() for x, y in spots]
    ties = {
        group: (spots[0][0] - 0.5, min(y for _, y in spots), spots[0][0] + 0.5, max(y for _, y in spots))
        for group, spots in groups.items()
    }

    def crowd(group: str) -> int:
        return -sum(
            abs(x - other_x) < 60 and abs(y - other_y) < 30
            for x, y in groups[group]
            for spots in groups.values()
            for other_x, other_y in spots
        )

    placed: dict[str, Label] = {}
    order = sorted(groups, key=crowd)
    for _ in range(4):
        for group in order:
            others = [found for name, found in placed.items() if name != group]
            lines = [box for name, box in ties.items() if name != group]

            strangers = [spot for name, spots in groups.items() if name != group for spot in spots]

            def cost(
                found: Label,
                way: float,
                others: list[Label] = others,
                lines: list[Box] = lines,
                strangers: list[Spot] = strangers,
            ) -> float:
                total = WAY * way + _outside(found.box, inside) * 50
                total += 4 * sum(_overlap(found.box, other.box) for other in others)
                total += 4 * sum(_overlap(found.box, mark) for mark in marks)
                total += 12 * sum(_overlap(found.box, tie) > 0 for tie in lines)
                # Beside a mark of another column, a label without a leader would be taken for that one's.
                if not found.leader:
                    total += 7 * sum(math.dist(_nearest(found.box, *spot), spot) < 15 for spot in strangers)
                else:
                    total += 6
                    end = _nearest(found.box, *found.leader)
                    for step in (0.3, 0.5, 0.7, 0.9):
                        x = found.leader[0] + step * (end[0] - found.leader[0])
                        y = found.leader[1] + step * (end[1] - found.leader[1])
                        point = (x - 1, y - 1, x + 1, y + 1)
                        total += 15 * sum(_overlap(point, box) > 0 for box in [*marks, *(o.box for o in others)])
                return total

            least = math.inf
            for found, way in _candidates(group, groups[group]):
                # From here on the way alone costs more than what was found.
                if WAY * way >= least:
                    break
                if (price := cost(found, way)) < least:
                    least, placed[group] = price, found
    return placed


def _candidates(words: str, spots: Sequence[tuple[float, float]]) -> Iterator[tuple[Label, float]]:
    """Places around the spots, with how far away they are, the nearest first."""
    width = LETTER * len(words)
    for x, y in spots:
        for dx, dy, anchor in ((10, 4, "start"), (-10, 4, "end"), (0, -11, "middle"), (0, 20, "middle")):
            yield Label(x + dx, y + dy, anchor, _box(x + dx, y + dy, anchor, width)), 0.0
    for radius, (x, y) in itertools.product((22.0, 34.0, 48.0, 64.0, 82.0, 104.0), spots):
        for step in range(16):
            angle = math.tau * (step + 0.5) / 16
            to_x, to_y = x + radius * math.cos(angle), y + radius * math.sin(angle) + 4
            anchor = "start" if math.cos(angle) > 0 else "end"
            box = _box(to_x, to_y, anchor, width)
            yield Label(to_x, to_y, anchor, box, leader=(x, y)), radius


def _box(x: float, y: float, anchor: str, width: float) -> Box:
    left = {"start": x, "end": x - width, "middle": x - width / 2}[anchor]
    return left - 1, y - LINE + 3, left + width + 1, y + 4


def _overlap(one: Box, other: Box) -> float:
    if one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]:
        return 0.0
    return (min(one[2], other[2]) - max(one[0], other[0])) * (min(one[3], other[3]) - max(one[1], other[1]))


def _outside(box: Box, inside: Box) -> float:
    return sum(
        max(0.0, amount) for amount in (inside[0] - box[0], inside[1] - box[1], box[2] - inside[2], box[3] - inside[3])
    )


def _nearest(box: Box, x: float, y: float) -> tuple[float, float]:
    return min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])


def _room(values: Sequence[float], least: float) -> tuple[float, float]:
    """A range with room on both sides, no narrower than `least`."""
    low, high = min(values), max(values)
    margin = max((high - low) * 0.07, least / 2)
    low, high = low - margin, high + margin
    return (low, high) if high > low else padded(low, high)


def _legend(kinds: Sequence[str], used: Sequence[int]) -> list[Markup]:
    parts: list[Markup] = []
    x = WIDTH - RIGHT
    for kind in reversed(used):
        words = kinds[kind] if kind < len(kinds) else str(kind)
        x -= LETTER * len(words)
        parts += [label(x, TOP - 24, words, "tick"), shape(kind, x - 12, TOP - 28, 5.0)]
        x -= 36
    return parts


def _arrow(x: float, y: float, words: str) -> list[Markup]:
    """An arrow to the lower right, and what lies there."""
    return [
        label(x - 22, y, words, "better", "end"),
        tag("path", d=f"M{x - 15:.1f} {y - 12:.1f}l11 11m0 -8v8h-8", class_="better-arrow"),
    ]
