"""Real vectors as integers modulo 2^r, so that sums are exact, and cannot overflow by construction.

A client with weight w sends q = rint(x * s) * w for every coordinate x, clipped to [-c, c] before. With at most W = the
sum of the largest weights that a round can have, s = floor(floor(L / W) / c) keeps every possible sum within L, which
is 2^31 - 1 for r = 32, and 2^48 for r = 64. The mean of the weighted vectors is then off by at most 1 / (2 s) a
coordinate, as every rounding is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import ProtocolError
from fedsim.secagg.base import Contribution, RoundClosed, Terms, Total
from fedsim.secagg.limits import problems, scale

BLOCK = 1 << 17
"""Coordinates that are rounded at once: their float64 values stay in the cache."""

NUMBERS = 3
"""Entries behind the tensors: examples, examples times steps, and how many coordinates were clipped."""


@dataclass(frozen=True)
class Codec:
    """Contributions as vectors of the ring of integers modulo 2^bits, and their sums back.

    bits: 32 or 64. clip, statistics_clip: the largest magnitude of a coordinate of an update, and of a statistic. A
    vector holds the update, the statistics and three numbers, in this order. Raises ValueError where `problems` has
    something to say.
    """

    terms: Terms
    bits: int
    clip: float
    statistics_clip: float

    def __post_init__(self) -> None:
        for key, problem in problems(self.terms.clients, self.terms.most_examples, self.terms.most_steps, self):
            raise ValueError(f"{key}: {problem}")

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The integers of the ring."""
        return np.uint32 if self.bits == 32 else np.uint64

    @property
    def size(self) -> int:
        """Entries of a vector."""
        return self.terms.layout.entries + NUMBERS

    @property
    def scale(self) -> int:
        """s, of the update."""
        return scale(self.bits, self.clip, self.terms.clients * self.terms.most_examples)

    @property
    def statistics_scale(self) -> int:
        """s, of the statistics."""
        return scale(self.bits, self.statistics_clip, self.terms.clients * self.terms.most_examples)

    @property
    def error(self) -> float:
        """The bound of the error of a coordinate of the mean update: 1 / (2 s)."""
        return 1 / (2 * self.scale)

    def weight(self, examples: int) -> int:
        """What a client with so many examples weighs."""
        return min(examples, self.terms.most_examples)

    def encode(self, what: Contribution) -> NDArray[np.unsignedinteger]:
        """The vector of one client, (size,). Raises ProtocolError where a value is not finite or a tensor is amiss."""
        weight, clipped, place = self.weight(what.examples), 0, 0
        if what.examples < 1 or not 1 <= what.steps <= self.terms.most_steps:
            raise ProtocolError(f"{what.examples} examples in {what.steps} steps cannot be summed")
        out = np.empty(self.size, self.dtype)
        rounding = {"update": (self.scale, self.clip), "statistics": (self.statistics_scale, self.statistics_clip)}
        for part, path, flat in self.terms.layout.flat(what):
            factor, limit = rounding[part]
            for start in range(0, len(flat), BLOCK):
                block = flat[start : start + BLOCK].astype(np.float64)
                if not np.isfinite(block).all():
                    raise ProtocolError(f"{path} holds {'NaN' if np.isnan(block).any() else 'Inf'}")
                over = np.abs(block) > limit
                if over.any():
                    clipped += int(over.sum())
                    np.clip(block, -limit, limit, out=block)
                block *= factor
                np.rint(block, out=block)
                whole = block.astype(np.int64)
                whole *= weight
                out[place : place + len(whole)] = whole.astype(self.dtype)
                place += len(whole)
        most_clipped = (2 ** (self.bits - 1) - 1) // self.terms.clients
        out[place:] = [weight, weight * what.steps, min(clipped, most_clipped)]
        return out

    def decode(self, ring: NDArray[np.unsignedinteger], clients: Iterable[int]) -> Total:
        """What a sum of the vectors of `clients` says. Raises RoundClosed for one that is no such sum."""
        clients = tuple(sorted(clients))
        values = ring.view(np.int32 if self.bits == 32 else np.int64)
        examples, steps, clipped = (int(value) for value in values[-NUMBERS:])
        if (
            ring.shape != (self.size,)
            or not len(clients) <= examples <= len(clients) * self.terms.most_examples
            or not examples <= steps <= examples * self.terms.most_steps
            or clipped < 0
        ):
            raise RoundClosed(
                f"the sum is none of the updates of {len(clients)} clients (it says {examples} examples): masks did "
                "not cancel, as when clients were sent different models"
            )
        scales = {"update": self.scale, "statistics": self.statistics_scale}
        tensors = self.terms.layout.unflattened(
            values, lambda part, found: found.astype(np.float64) / (scales[part] * examples)
        )
        return Total(
            clients,
            tensors["update"],
            tensors["statistics"],
            examples,
            steps / examples,
            clipped,
            self.error,
            ring,
        )
