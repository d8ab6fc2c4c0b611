"""Values of foreign files, checked on their way in: what is not what it should be becomes None, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Table = Mapping[str, Any]


def real(value: object) -> float | None:
    """A number, NaN and infinity included; None for anything else. A truth value is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def integer(value: object) -> int | None:
    """A whole number, or None."""
    number = real(value)
    return int(number) if number is not None and number.is_integer() else None


def text(value: object) -> str:
    """A string; empty for anything else."""
    return value if isinstance(value, str) else ""


def table(value: object) -> Table:
    """A table; empty for anything else."""
    return value if isinstance(value, Mapping) else {}


def tables(value: object) -> tuple[Table, ...]:
    """The tables of a list."""
    return tuple(entry for entry in value if isinstance(entry, Mapping)) if isinstance(value, list | tuple) else ()


def strings(value: object) -> tuple[str, ...]:
    """The strings of a list; a lone string is a list of one."""
    if isinstance(value, str):
        return (value,) if value else ()
    return tuple(entry for entry in value if isinstance(entry, str)) if isinstance(value, list | tuple) else ()


def integers(value: object) -> tuple[int, ...]:
    """The whole numbers of a list."""
    numbers = [integer(entry) for entry in value] if isinstance(value, list | tuple) else []
    return tuple(number for number in numbers if number is not None)
