"""Whether the sums of a round fit into the ring, told before anything heavy is imported."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Protocol

LEAST_FRACTIONAL_BITS = 10
"""With fewer bits behind the point, updates would be rounded to nothing."""

LARGEST = {32: 2**31 - 1, 64: 2**48}
"""By the bits of the ring, the largest magnitude of a sum. Of 64 bits only so many are used that float64, in which
vectors are rounded and sums are read, is exact about them."""


class Limits(Protocol):
    """The settings that a codec depends on."""

    @property
    def bits(self) -> int: ...
    @property
    def clip(self) -> float: ...
    @property
    def statistics_clip(self) -> float: ...


def scale(bits: int, clip: float, weight: int) -> int:
    """s = floor(floor(LARGEST / weight) / clip), exactly. weight: the most that all clients of a round have.

    So clip * s is at most a whole number that does not overflow when `weight` of it are added up, and stays so when it
    is rounded.
    """
    return math.floor(LARGEST[bits] // weight / Fraction(clip))


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
