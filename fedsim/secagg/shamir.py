"""Sharing a secret of 32 bytes so that any `threshold` holders can restore it, and fewer learn nothing of it.

Shamir (CACM 1979): a random polynomial of degree threshold - 1 modulo the prime 2^256 + 297, the smallest above every
32-byte number; the secret is its value at 0, the share of holder i its value at i + 1.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence

from fedsim.errors import ProtocolError

PRIME = 2**256 + 297
"""The shares' modulus."""

SECRET = 32
"""Bytes of a secret."""

SHARE = 33
"""Bytes of a share, big endian: one more than a secret, as the prime is just above 2^256."""


def split(secret: bytes, threshold: int, holders: Sequence[int]) -> dict[int, bytes]:
    """{holder: share}. Any `threshold` of the shares, even or odd in number, restore the secret.

    holders: ids from 0 on, each once. The coefficients come from the operating system. Raises ValueError for a secret
    of another length, a holder twice or below 0, and a threshold outside of 1 ... the number of holders.
    """
    if len(secret) != SECRET:
        raise ValueError(f"a secret has {SECRET} bytes, not {len(secret)}")
    # Far below the modulus: the share at place 0 would be the secret.
    if len(set(holders)) != len(holders) or not all(0 <= holder < 2**63 for holder in holders):
        raise ValueError("holders of shares are distinct numbers from 0 on, below 2^63")
    if not 1 <= threshold <= len(holders):
        raise ValueError(f"{len(holders)} holders can never be {threshold}, as the threshold asks")
    falling = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    constant = int.from_bytes(secret, "big")
    shares = {}
    for holder in holders:
        value, place = 0, holder + 1
        for coefficient in falling:
            value = (value + coefficient) * place % PRIME
        shares[holder] = ((value + constant) % PRIME).to_bytes(SHARE, "big")
    return shares


def check_share(holder: int, share: bytes) -> int:
    """The number that a share says. Raises ProtocolError, naming the holder, for what cannot be a share."""
    if len(share) != SHARE:
        raise ProtocolError(f"the share of client {holder} has {len(share)} bytes, not {SHARE}")
    if (value := int.from_bytes(share, "big")) >= PRIME:
        raise ProtocolError(f"the share of client {holder} is no number below the modulus")
    return value


class Reconstructor:
    """Restores secrets that were shared with one threshold.

    The Lagrange weights of a set of holders are computed once, so that many secrets of the same holders cost little.
    """

    def __init__(self, threshold: int) -> None:
        if threshold < 1:
            raise ValueError(f"a threshold is at least 1, not {threshold}")
        self.threshold = threshold
        self._weights: dict[tuple[int, ...], list[int]] = {}

    def combine(self, shares: Mapping[int, bytes]) -> bytes:
        """The secret, 32 bytes, from {holder: share}: exactly `threshold` are used, those of the lowest ids.

        Raises ProtocolError for too few shares, for what is no share, and where they are not of one secret, as far as
        it shows: a wrong share mostly yields a wrong secret.
        """
        if len(shares) < self.threshold:
            raise ProtocolError(f"{len(shares)} shares of a secret are there, and {self.threshold} are needed")
        holders = tuple(sorted(shares)[: self.threshold])
        if holders[0] < 0:
            raise ProtocolError(f"there is no holder {holders[0]}")
        values = [check_share(holder, shares[holder]) for holder in holders]
        if holders not in self._weights:
            self._weights[holders] = _weights([holder + 1 for holder in holders])
        weights = self._weights[holders]
        secret = sum(weight * value for weight, value in zip(weights, values, strict=True)) % PRIME
        if secret >= 256**SECRET:
            raise ProtocolError(f"the shares of clients {', '.join(map(str, holders))} are not of one secret")
        return secret.to_bytes(SECRET, "big")


def _weights(places: Sequence[int]) -> list[int]:
    """What each value of a polynomial counts in its value at 0: prod_(m != j) x_m / (x_m - x_j) modulo the prime."""
    below = [place * math.prod(other - place for other in places if other != place) % PRIME for place in places]
    # One inversion for all: the inverse of the product, from which each is had by multiplying the others back.
    upto = [1]
    for value in below:
        upto.append(upto[-1] * value % PRIME)
    inverse = pow(upto[-1], -1, PRIME) * math.prod(places) % PRIME
    weights = [0] * len(below)
    rest = inverse
    for index in range(len(below) - 1, -1, -1):
        weights[index] = rest * upto[index] % PRIME
        rest = rest * below[index] % PRIME
    return weights
