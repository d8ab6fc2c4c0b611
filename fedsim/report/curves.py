"""Lines over an axis with numbers: an attack's score over a setting, or how labels crowd as batches grow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedsim.report.charts import Point, apart, drawable, padded, tick, ticks
from fedsim.report.planes import shape
from fedsim.report.svg import hover, label, line, picture, tag

STEEP = 20.0
"""The largest x over the smallest, from which on steps of the axis are drawn evenly and not in proportion."""


@dataclass(frozen=True)
class Curve:
    """A named line. kind: its shape and colour."""

    name: str
    points: Sequence[Point]
    kind: int = 0


def even(values: Sequence[float]) -> bool:
    """Whether these places of an axis stand evenly: in proportion, the small ones would lie on one another."""
    apart = sorted(set(values))
    above = [value for value in apart if value > 0]
    return len(apart) > 2 and bool(above) and (apart[0] < 0 or above[-1] / above[0] > STEEP)


def curves(
    drawn: Sequence[Curve],
    *,
    name: str,
    x_label: str,
    y_label: str,
    written: Callable[[float | None], str],
    percent: bool = False,
) -> Markup | None:
    """Curves with a mark at each value, named at their ends; None without a finite value.

    Args:
        drawn: values that are not finite are left out, and the line goes on to the next.
        name: what the chart shows, in words.
        x_label, y_label: what the axes measure.
        written: how a value is written, for what a resting pointer shows.
        percent: values are fractions; the scale goes from 0 % to 100 %.
    """
    kept = [Curve(one.name, sorted(point for point in one.points if drawable(point)), one.kind) for one in drawn]
    kept = [one for one in kept if one.points]
    if not kept:
        return None
    # Names stand at the right; a long one needs room.
    right = min(220.0, 28 + 7.2 * max(len(one.name) for one in kept))
    width, height, left, top, bottom = 620.0, 330.0, 52.0, 36.0, 48.0
    values = [y for one in kept for _, y in one.points]
    y_low, y_high = (0.0, 1.0) if percent else padded(0.0 if min(values) >= 0 else min(values), max(values))
    places = sorted({x for one in kept for x, _ in one.points})
    steps = even(places)

    def across(x: float) -> float:
        if steps:
            share = places.index(x) / (len(places) - 1)
        else:
            share = (x - places[0]) / (places[-1] - places[0]) if len(places) > 1 else 0.5
        return left + share * (width - left - right)

    def at(point: Point) -> Point:
        return across(point[0]), height - bottom - (point[1] - y_low) / (y_high - y_low) * (height - top - bottom)

    parts: list[Markup] = [label(4, 14, y_label, "axis")]
    y_ticks = ticks(y_low, y_high, 5)
    for value in y_ticks:
        y = at((places[0], value))[1]
        shown = f"{100 * value:.0f} %" if percent else tick(value, y_ticks)
        parts += [line(left, y, width - right, y, "grid"), label(left - 8, y + 4, shown, "tick", "end")]
    last = -math.inf
    for place in places:
        x = across(place)
        # A number that would touch the one before it is left out; its marks tell it.
        if x - last >= 9 + 3.6 * len(f"{place:g}"):
            parts.append(label(x, height - bottom + 18, f"{place:g}", "tick", "middle"))
            last = x + 3.6 * len(f"{place:g}")
    parts.append(line(left, height - bottom, width - right, height - bottom, "base"))
    parts.append(label((left + width - right) / 2, height - 6, x_label, "axis", "middle"))
    for one in kept:
        spots = [at(point) for point in one.points]
        if len(spots) > 1:
            drawn_line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
            parts.append(tag("polyline", points=drawn_line, class_=f"line l{one.kind % 6}"))
        for point, spot in zip(one.points, spots, strict=True):
            words = f"{one.name}, {x_label} {point[0]:g}: {written(point[1])}"
            parts.append(tag("g", hover(words), shape(one.kind, *spot, 4.5), class_="spot"))
    ends = [at(one.points[-1]) for one in kept]
    # Each mark has the name's own colour, so a name that had to move still finds its line.
    for one, (x, _), y in zip(kept, ends, apart([y for _, y in ends], 16.0, height - bottom + 14), strict=True):
        parts.append(label(x + 10, y + 4, one.name, f"name t{one.kind % 6}"))
    return picture(width, height, name, *parts, class_="chart curves")
