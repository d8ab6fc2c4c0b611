"""Whether the sums of a round fit into the ring, told before anything heavy is imported."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

LEAST_FRACTIONAL_BITS = 10
"""With fewer bits behind the point, updates would be rounded to nothing."""


class Limits(Protocol):
    """The settings that a codec depends on."""

    @property
    def bits(self) -> int: ...
    @property
    def clip(self) -> float: ...
    @property
    def statistics_clip(self) -> float: ...


def scale(bits: int, clip: float, weight: int) -> int:
    """s = floor((2^(bits-1) - 1) / (clip * weight)); weight: the most that all clients of a round have."""
    return math.floor((2 ** (bits - 1) - 1) / (clip * weight))


def problems(
    clients: int, most_examples: int | None, most_steps: int | None, settings: Limits
) -> Iterator[tuple[str, str]]:
    """(key, problem) where a round's sums would be too coarse, or could overflow. None: not known yet."""
    if most_examples is None:
        return
    weight = clients * most_examples
    for key, limit in (("clip", settings.clip), ("statistics_clip", settings.statistics_clip)):
        found = scale(settings.bits, limit, weight)
        if found < 2**LEAST_FRACTIONAL_BITS:
            remedy = "use bits = 64" if settings.bits == 32 else f"lower {key}"
            left = f"{math.log2(found):.1f}" if found else "no"
            yield (
                key,
                f"{left} fractional bits are left of {settings.bits} for values up to {limit:g}, {clients} clients and "
                f"{most_examples} examples each, and {LEAST_FRACTIONAL_BITS} are needed; {remedy}, or lower {key}",
            )
    if most_steps is not None and weight * most_steps >= 2 ** (settings.bits - 1):
        yield (
            "bits",
            f"{clients} clients with up to {most_examples} examples and {most_steps} steps cannot be counted in "
            f"{settings.bits} bits; use bits = 64",
        )
