"""Numbers as a reader wants them. Whatever is missing or not finite has a form too, so that nothing here can fail."""

from __future__ import annotations

import math
from collections.abc import Iterable

MISSING = "-"


def finite(value: float | None) -> bool:
    """Whether there is a number, and a finite one."""
    return value is not None and math.isfinite(value)


def fixed(value: float | None, digits: int = 2) -> str:
    """With `digits` decimals; infinite as a sign; `-` where there is no number."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if abs(value) >= 1e7:
        return f"{value:.3g}"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def significant(value: float | None, digits: int = 3) -> str:
    """With `digits` significant digits, as an exponent only where it would be unreadable otherwise."""
    if value is None or not math.isfinite(value):
        return fixed(value)
    return f"{value:.{digits}g}"


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as a percentage."""
    return f"{fixed(100 * value, digits)} %" if value is not None and math.isfinite(value) else MISSING


def share(value: float | None) -> str:
    """A fraction as a percentage, of which one above 0 is not told as 0 %."""
    if value is None or not math.isfinite(value):
        return MISSING
    if 0 < value < 0.001:
        return "less than 0.1 %"
    return percent(value, 1 if value < 0.1 else 0)


def decibels(value: float | None) -> str:
    """A PSNR with its unit."""
    text = fixed(value, 1)
    return text if text == MISSING else f"{text} dB"


def whole(value: float | None) -> str:
    """A count, with separators between thousands."""
    return f"{value:,.0f}" if value is not None and math.isfinite(value) else MISSING


def counted(number: float | None, noun: str, plural: str | None = None) -> str:
    """`1 image`, `8 images`; without a number, `an unknown number of images`."""
    plural = plural or f"{noun}s"
    if number is None or not math.isfinite(number):
        return f"an unknown number of {plural}"
    return f"{whole(number)} {noun if number == 1 else plural}"


def duration(seconds: float | None) -> str:
    """`0.52 s`, `11 s`, `2 min 05 s`, `1 h 02 min`."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole_seconds = round(seconds)
    if whole_seconds < 60:
        return f"{whole_seconds} s"
    minutes, rest = divmod(whole_seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def listed(words: list[str], joint: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {joint} {words[-1]}"


def numbered(numbers: list[int], noun: str) -> str:
    """`client 3`, `clients 0 and 2`, `clients 0 to 7`: runs of three or more numbers are drawn together."""
    if not numbers:
        return f"no {noun}"
    return f"{noun if len(set(numbers)) == 1 else noun + 's'} {ranges(numbers)}"


def ranges(numbers: Iterable[int]) -> str:
    """`3`, `0 and 2`, `0 to 7 and 9`; empty without any."""
    ordered = sorted(set(numbers))
    parts: list[str] = []
    start = 0
    for end in range(1, len(ordered) + 1):
        if end < len(ordered) and ordered[end] == ordered[end - 1] + 1:
            continue
        group = ordered[start:end]
        parts += [f"{group[0]} to {group[-1]}"] if len(group) > 2 else [str(number) for number in group]
        start = end
    return listed(parts)


def plain(value: object) -> str:
    """A setting as a person would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(entry) for entry in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(entry)}" for key, entry in value.items())
    try:
        return str(value)
    except ValueError:  # Python writes no whole number of more than a few thousand digits.
        return "a very large number"
