"""Contributions as vectors of real numbers that CKKS encrypts, and their sums back.

A vector holds w x for every coordinate x of the update and of the statistics, and then three whole numbers: 1, w and
w times the steps. The coordinates are divided by the most that all clients weigh together, so that no entry of a sum is
larger than the largest coordinate was. The numbers go as digits, since a sum of digits is exact in spite of the noise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import ProtocolError
from fedsim.secagg.base import Contribution, RoundClosed, Terms, Total
from fedsim.secagg.ckks import BASE, DIGITS, NUMBERS

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Slots:
    """largest: the largest magnitude that an entry may have."""

    terms: Terms
    largest: float

    @property
    def size(self) -> int:
        """Entries of a vector."""
        return self.terms.layout.entries + len(NUMBERS) * DIGITS

    @property
    def heaviest(self) -> int:
        """What all clients of a round weigh at most."""
        return self.terms.clients * self.terms.most_examples

    def encode(self, what: Contribution) -> Vector:
        """The vector of one client, (size,). Raises ProtocolError where a value is not finite, a value is too large, or
        a tensor is amiss.
        """
        if what.examples < 1 or not 1 <= what.steps <= self.terms.most_steps:
            raise ProtocolError(f"{what.examples} examples in {what.steps} steps cannot be summed")
        weight = min(what.examples, self.terms.most_examples)
        out = np.empty(self.size, np.float64)
        place = 0
        for _, path, flat in self.terms.layout.flat(what):
            if not np.isfinite(flat).all():
                raise ProtocolError(f"{path} holds {'NaN' if np.isnan(flat).any() else 'Inf'}")
            peak = float(np.abs(flat).max(initial=0))
            if peak > self.largest:
                raise ProtocolError(f"{path} holds {peak:g}, and no more than {self.largest:g} fits; lower scale_bits")
            np.multiply(flat, weight / self.heaviest, out=out[place : place + len(flat)], dtype=np.float64)
            place += len(flat)
        out[place:] = np.concatenate([_digits(number) for number in (1, weight, weight * what.steps)])
        return out

    def numbers(self, values: Vector) -> tuple[int, int, int] | None:
        """(clients, examples, steps times examples) of a sum; None where the digits are none, as of garbage."""
        rows = values[-len(NUMBERS) * DIGITS :].reshape(len(NUMBERS), DIGITS)
        digits = np.rint(rows)
        if not np.isfinite(rows).all() or np.abs(rows - digits).max() > 0.25 or digits.min() < 0:
            return None
        if digits.max() > self.terms.clients * (BASE - 1):
            return None
        clients, examples, steps = (sum(int(digit) * BASE**at for at, digit in enumerate(row)) for row in digits)
        return clients, examples, steps

    def decode(self, values: Vector, clients: Iterable[int]) -> Total:
        """What a sum of the vectors of `clients` says. Raises RoundClosed for one that is no such sum."""
        clients = tuple(sorted(clients))
        found = self.numbers(values) if values.shape == (self.size,) and np.isfinite(values).all() else None
        if found is None:
            raise RoundClosed(f"what was decrypted is none of the sums of {len(clients)} clients: it is no sum at all")
        count, examples, steps = found
        if (
            count != len(clients)
            or not count <= examples <= count * self.terms.most_examples
            or not examples <= steps <= examples * self.terms.most_steps
        ):
            raise RoundClosed(
                f"what was decrypted is not the sum of {len(clients)} clients: it says {count} clients with {examples} "
                "examples"
            )
        factor = self.heaviest / examples
        tensors = self.terms.layout.unflattened(values, lambda _, found: found * factor)
        return Total(clients, tensors["update"], tensors["statistics"], examples, steps / examples)


def _digits(number: int) -> Vector:
    """The digits of a whole number, the lowest first, (DIGITS,)."""
    return np.array([number // BASE**at % BASE for at in range(DIGITS)], np.float64)
