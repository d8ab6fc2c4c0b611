"""The charts of a report: lines over rounds, an attack's objective, scores on a scale, classes as stacked bars.

Each takes plain numbers and gives one inline SVG whose colours are classes of `style.css`, so that it follows light and
dark pages and print. Values that are not finite leave a gap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedsim.report.formats import fixed, significant, whole
from fedsim.report.svg import hover, label, line, picture, tag

Point = tuple[float, float]
MOST_POINTS = 240
"""A longer line is thinned to this many: more would not be seen."""


@dataclass(frozen=True)
class Series:
    """A named line. `style` is its class in the style sheet."""

    name: str
    style: str
    points: Sequence[Point]


def ticks(low: float, high: float, about: int = 5, *, integral: bool = False) -> list[float]:
    """Round numbers that lie between `low` and `high`, in steps of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else []
    rough = (high - low) / max(about, 1)
    if rough == 0 or not math.isfinite(rough):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * factor for factor in (1, 2, 5) if power * factor >= rough * 0.999), power * 10)
    if integral:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def lines(
    series: Sequence[Series], *, name: str, percent: bool = False, marks: dict[int, str] | None = None
) -> Markup | None:
    """Values over rounds, each line named at its end.

    Args:
        series: the lines; those without a finite point are left out.
        name: what the chart shows, in words.
        percent: the values are fractions, to be written as percentages; the scale then begins at 0.
        marks: rounds to be marked on the axis, with the words to show for each.

    Returns: the chart, or None when there is nothing to draw.
    """
    drawn = [entry for entry in series if any(drawable(point) for point in entry.points)]
    if not drawn:
        return None
    width, height, left, right, top, bottom = 560.0, 280.0, 48.0, 96.0, 14.0, 40.0
    points = [point for entry in drawn for point in entry.points if drawable(point)]
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    x_high = x_high if x_high > x_low else x_low + 1
    values = [y for _, y in points]
    y_low, y_high = padded(0.0 if percent or min(values) >= 0 else min(values), max(values), 1.0 if percent else None)

    def at(x: float, y: float) -> Point:
        return (
            left + (x - x_low) / (x_high - x_low) * (width - left - right),
            height - bottom - (y - y_low) / (y_high - y_low) * (height - top - bottom),
        )

    def written(value: float) -> str:
        return f"{fixed(100 * value, 1)} %" if percent else fixed(value, 3)

    parts: list[Markup] = []
    if percent and 0.8 < y_high <= 1:
        y_high = 1.0
    y_ticks = ticks(y_low, y_high, 6)
    for value in y_ticks:
        y = at(x_low, value)[1]
        shown = f"{value * 100:.0f} %" if percent and y_high - y_low > 0.04 else tick(value, y_ticks)
        parts += [line(left, y, width - right, y, "grid"), label(left - 8, y + 4, shown, "tick", "end")]
    for value in ticks(x_low, x_high, 8, integral=True):
        parts.append(label(at(value, y_low)[0], height - bottom + 18, f"{value:.0f}", "tick", "middle"))
    parts.append(label((left + width - right) / 2, height - 4, "round", "axis", "middle"))
    parts.append(line(left, height - bottom, width - right, height - bottom, "base"))
    for number, words in (marks or {}).items():
        if x_low <= number <= x_high:
            x, y = at(number, y_low)
            shape = f"M{x:.1f} {y - 1:.1f}l-5 -9h10z"
            parts.append(tag("path", hover(words), d=shape, class_="mark"))
    ends: list[tuple[float, Series, Point]] = []
    for entry in drawn:
        parts += _curve(entry, at)
        for x, y in _thinned([point for point in entry.points if drawable(point)]):
            spot = at(x, y)
            words = f"{entry.name}, round {x:.0f}: {written(y)}"
            shown = tag("circle", cx=spot[0], cy=spot[1], r=2.6, class_=f"dot {entry.style}")
            target = tag("circle", cx=spot[0], cy=spot[1], r=9, class_="target")
            small = len(entry.points) <= 40 or (x, y) == entry.points[-1]
            parts.append(tag("g", hover(words), shown if small else Markup(""), target))
        last = [point for point in entry.points if drawable(point)][-1]
        ends.append((at(*last)[1], entry, last))
    for y, (_, entry, last) in zip(apart([end[0] for end in ends], 30.0, height - bottom), ends, strict=True):
        x = at(*last)[0] + 10
        parts.append(label(x, y, entry.name, f"name {entry.style}"))
        parts.append(label(x, y + 14, written(last[1]), f"value {entry.style}"))
    return picture(width, height, name, *parts)


def objective(history: Sequence[Point], *, name: str, low: float, high: float) -> Markup | None:
    """An attack's objective over its iterations, on a scale that several charts can share.

    The scale is logarithmic when `low` is above 0 and linear otherwise. None when there is nothing to draw.
    """
    logarithmic = low > 0
    points = [point for point in history if drawable(point) and (point[1] > 0 or not logarithmic)]
    if not points or not (math.isfinite(low) and math.isfinite(high)):
        return None
    width, height, left, right, top, bottom = 300.0, 150.0, 46.0, 12.0, 10.0, 24.0
    x_high = max(max(x for x, _ in points), 1.0)
    if logarithmic:
        bounds = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
        y_low, y_high = float(bounds[0]), float(max(bounds[1], bounds[0] + 1))
        step = max(1, math.ceil((y_high - y_low) / 4))
        y_ticks = [(float(power), f"{10.0**power:g}") for power in range(int(y_low), int(y_high) + 1, step)]
    else:
        y_low, y_high = padded(low, high)
        values = ticks(y_low, y_high, 3)
        y_ticks = [(value, tick(value, values)) for value in values]

    def at(x: float, y: float) -> Point:
        raised = math.log10(y) if logarithmic else y
        return (
            left + x / x_high * (width - left - right),
            height - bottom - (raised - y_low) / (y_high - y_low) * (height - top - bottom),
        )

    parts: list[Markup] = []
    for value, shown in y_ticks:
        y = height - bottom - (value - y_low) / (y_high - y_low) * (height - top - bottom)
        parts += [line(left, y, width - right, y, "grid"), label(left - 6, y + 4, shown, "tick", "end")]
    parts.append(label(left, height - 6, "0", "tick", "middle"))
    parts.append(label(width - right, height - 6, f"{whole(x_high)} iterations", "tick", "end"))
    parts += _curve(Series("objective", "s-objective", points), at)
    for x, y in _thinned(points, 60):
        spot = at(x, y)
        words = f"iteration {whole(x)}: {significant(y)}"
        parts.append(tag("circle", hover(words), cx=spot[0], cy=spot[1], r=6, class_="target"))
    end = at(*points[-1])
    parts.append(tag("circle", cx=end[0], cy=end[1], r=3, class_="dot s-objective"))
    return picture(width, height, name, *parts)


def scale_of(histories: Iterable[Sequence[Point]]) -> tuple[float, float]:
    """The range that all these objectives share; its lower end is not above 0 when a logarithm would not do."""
    values = [y for history in histories for x, y in history if drawable((x, y))]
    if not values:
        return math.nan, math.nan
    return min(values), max(values)


@dataclass(frozen=True)
class Lane:
    """One attack on the SSIM scale: the mean, and each image's own value."""

    words: str
    mean: float
    values: Sequence[float]
    aware: bool = False


def scale(lanes: Sequence[Lane], *, name: str) -> Markup | None:
    """SSIM from 0 to 1, one lane an attack: a faint dot for each image, a large mark for the mean.

    An adversary that knows the defense has a hollow mark. The scale reaches below 0 only where a value does.
    """
    shown = [lane for lane in lanes if math.isfinite(lane.mean)]
    if not shown:
        return None
    width, left, right, step, top = 420.0, 12.0, 12.0, 46.0, 6.0
    height = top + step * len(shown) + 20
    lowest = min([0.0, *(lane.mean for lane in shown), *(v for lane in shown for v in lane.values if math.isfinite(v))])
    low = max(math.floor(lowest * 4) / 4, -1.0)

    def at(value: float) -> float:
        return left + (min(max(value, low), 1.0) - low) / (1.0 - low) * (width - left - right)

    parts: list[Markup] = []
    for value in [index / 4 for index in range(round(low * 4), 5)]:
        x = at(value)
        parts.append(line(x, top + 16, x, height - 18, "grid"))
        anchor = "start" if value == low else "end" if value == 1 else "middle"
        if value == 0.75 and at(1.0) - x < 90:
            continue  # its number would run into the words at 1
        words = "1 identical" if value == 1 else f"{value:g}"
        parts.append(
            label(x + (-4 if anchor == "start" else 4 if anchor == "end" else 0), height - 3, words, "tick", anchor)
        )
    for index, lane in enumerate(shown):
        y = top + step * index + 31
        parts.append(line(at(low), y, at(1.0), y, "base"))
        dots = [value for value in lane.values if math.isfinite(value)]
        for value in dots:
            words = f"one image: SSIM {fixed(value)}"
            parts.append(tag("circle", hover(words), cx=at(value), cy=y, r=4, class_="image"))
        x = at(lane.mean)
        style = "mean aware" if lane.aware else "mean"
        words = f"{lane.words or 'mean'}: SSIM {fixed(lane.mean)}"
        parts.append(tag("circle", hover(words), cx=x, cy=y, r=7, class_=style))
        anchor = "start" if x < width / 2 else "end"
        parts.append(label(x + (-7 if anchor == "start" else 7), y - 13, f"{fixed(lane.mean)}", "score", anchor))
        if lane.words:
            offset = 34 if anchor == "start" else -34
            parts.append(label(x + offset, y - 13, lane.words, "tick", anchor))
    return picture(width, height, name, *parts)


def stack(counts: Sequence[int], *, longest: int, name: str) -> Markup | None:
    """A client's examples by class, as one bar; `longest` examples would fill the width. None without examples."""
    total = sum(counts)
    if total <= 0 or longest <= 0:
        return None
    width, height = 360.0, 22.0
    parts: list[Markup] = []
    x = 0.0
    for index, count in enumerate(counts):
        if count <= 0:
            continue
        span = count / longest * width
        words = f"class {index}: {whole(count)} of {whole(total)}"
        bar = tag("rect", x=x, y=1, width=max(span - 0.8, 0.4), height=height - 2, rx=1.5, class_=f"k{index % 10}")
        inside = label(x + span / 2 - 0.4, 15, str(index), "inside", "middle") if span >= 9 * len(str(index)) else ""
        parts.append(tag("g", hover(words), bar, inside))
        x += span
    return picture(width, height, name, *parts, class_="chart stack")


def drawable(point: Point) -> bool:
    # A value this large is a training that blew up; its chart would show nothing else, and floats would overflow.
    return all(math.isfinite(part) and abs(part) < 1e100 for part in point)


def padded(low: float, high: float, most: float | None = None) -> Point:
    """A range of the axis with room above, and never of no size."""
    span = high - low
    if span <= 0:
        span = abs(high) or 1.0
    top = high + 0.08 * span
    if most is not None and high <= most:
        top = min(top, most)
    bottom = low if low == 0 else low - 0.08 * span
    return bottom, top if top > bottom else bottom + 1.0


def tick(value: float, among: Sequence[float]) -> str:
    """A tick with as many decimals as its neighbours need to differ."""
    step = among[1] - among[0] if len(among) > 1 else abs(value) or 1.0
    if max(abs(entry) for entry in among) >= 1e5 or step < 1e-4:
        return f"{value:.3g}"
    return fixed(value, max(0, -math.floor(math.log10(step) + 1e-9)))


def _thinned(points: Sequence[Point], most: int = MOST_POINTS) -> Sequence[Point]:
    """Every so many points, the last one always among them."""
    stride = -(-len(points) // most)
    kept = list(points[::stride])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def _curve(series: Series, at: Callable[[float, float], Point]) -> list[Markup]:
    """A line through the points, broken where one is not finite."""
    pieces: list[list[Point]] = [[]]
    for point in _thinned(series.points):
        if drawable(point):
            pieces[-1].append(at(*point))
        elif pieces[-1]:
            pieces.append([])
    return [
        tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in piece), class_=f"line {series.style}")
        for piece in pieces
        if len(piece) > 1
    ]


def apart(heights: Sequence[float], gap: float, lowest: float) -> list[float]:
    """Heights moved no more than needed to stand `gap` apart, in the same order, and none below `lowest`."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    moved = list(heights)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    limit = lowest - 14
    for index in reversed(order):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved
