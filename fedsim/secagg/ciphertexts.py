"""CKKS by TenSEAL: a round's key, vectors encrypted in pieces, their sum, and a decryption that keeps the key safe."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from fedsim.errors import InputError, ProtocolError
from fedsim.secagg.ckks import CKKS, MISSING, MODULUS_BITS, SPARE_BITS
from fedsim.secagg.slots import Vector

_LENGTH = struct.Struct("<I")

_GRID = 8
"""Noisy values are rounded to this fraction of the noise, so that their last bits say nothing either."""


def tenseal() -> Any:
    """The package. Raises InputError, with what to do, where it is not installed."""
    try:
        import tenseal
    except ImportError as error:
        raise InputError(f"secure aggregation ckks {MISSING}") from error
    return tenseal


def fresh_key(settings: CKKS) -> bytes:
    """A fresh secret key, as a TenSEAL context that holds it. TenSEAL draws it from the operating system."""
    return _bytes(_context(settings), secret=True)


class PublicContext:
    """What a server needs to add: the parameters. Ciphertexts are symmetric, so that there is no public key."""

    def __init__(self, settings: CKKS) -> None:
        self._settings = settings
        self.context = tenseal().context_from(_parameters(settings), 1)

    def read(self, data: memoryview, size: int) -> list[Any]:
        """The ciphertexts of a vector of `size` entries. Raises ProtocolError for bytes that are none."""
        pieces = list(_unframed(data))
        wanted = [len(part) for part in _split(size, self._settings.slots)]
        if len(pieces) != len(wanted):
            raise ProtocolError(f"{len(pieces)} ciphertexts instead of {len(wanted)}")
        return [self._one(at, piece, slots) for at, (piece, slots) in enumerate(zip(pieces, wanted, strict=True))]

    def _one(self, at: int, piece: bytes, slots: int) -> Any:
        try:
            vector = tenseal().ckks_vector_from(self.context, piece)
            parts = vector.ciphertext()
            sound = (
                vector.size() == slots
                and len(parts) == 1
                and parts[0].size() == 2  # a product of two would have three polynomials
                and parts[0].scale == 2.0**self._settings.scale_bits
                and not parts[0].is_transparent()  # anybody can read one that is
            )
        except (ValueError, RuntimeError) as error:
            raise ProtocolError(f"ciphertext {at} cannot be read: {error}") from None
        if not sound:
            raise ProtocolError(f"ciphertext {at} is not of the form that was agreed")
        return vector


class SecretContext(PublicContext):
    """What a client has: the round's key. Raises ProtocolError for one of other parameters than the settings'."""

    def __init__(self, settings: CKKS, key: bytes) -> None:
        super().__init__(settings)
        try:
            self.context = tenseal().context_from(key, 1)
            sound = self.context.has_secret_key() and _bytes(self.context, secret=False) == _parameters(settings)
        except (ValueError, RuntimeError) as error:
            raise ProtocolError(f"the key of the round cannot be read: {error}") from None
        if not sound:
            raise ProtocolError("the key of the round has other parameters than were agreed")

    def encrypt(self, vector: Vector) -> bytearray:
        """The ciphertexts of a vector, (size,), one behind the other."""
        pieces = (vector[part.start : part.stop] for part in _split(len(vector), self._settings.slots))
        return framed(tenseal().ckks_vector(self.context, piece.tolist()).serialize() for piece in pieces)

    def decrypt(self, data: memoryview, size: int) -> Vector:
        """A vector as it is, with the error of its ciphertext: never to be told to anybody who has the ciphertext.

        Raises ProtocolError for bytes that are no ciphertexts.
        """
        return np.concatenate([np.asarray(vector.decrypt(), np.float64) for vector in self.read(data, size)])


def add(total: list[Any], more: list[Any]) -> None:
    """Add ciphertexts in place, exactly: it is a sum of integers, whatever the order."""
    for mine, other in zip(total, more, strict=True):
        mine.add_(other)


def framed(pieces: Iterable[bytes]) -> bytearray:
    """Pieces with their lengths in front, in one."""
    out = bytearray()
    for piece in pieces:
        out += _LENGTH.pack(len(piece))
        out += piece
    return out


def covered(values: Vector, std: float) -> Vector:
    """Values with Gaussian noise of this standard deviation, from the operating system's randomness.

    What is added is independent for every entry, and therefore for every coefficient of the real part of a polynomial.
    Whoever has the sum's ciphertext as well then has a hint of its error that is FLOOD times as noisy as the error is
    large: for Gaussian errors all but 1 / FLOOD^2 of their variance is left, and a secret key is about as hard to find
    as without the hint. A bare decryption has no such noise, and gives the key away.
    """
    half = (len(values) + 1) // 2
    # In (0, 1], so that the logarithm is finite: the method of Box and Muller.
    uniform = ((np.frombuffer(os.urandom(16 * half), np.uint64) >> np.uint64(11)) + np.uint64(1)) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[:half])), 2 * math.pi * uniform[half:]
    noise = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[: len(values)]
    step = 2.0 ** math.floor(math.log2(std / _GRID))
    out: Vector = np.rint((values + std * noise) / step) * step
    return out


def _context(settings: CKKS) -> Any:
    package = tenseal()
    context = package.context(
        package.SCHEME_TYPE.CKKS,
        settings.poly_modulus_degree,
        coeff_mod_bit_sizes=[MODULUS_BITS, SPARE_BITS],
        # All clients have the secret key: there is nobody to encrypt that has not. Symmetric ciphertexts have the
        # smaller error, one independent of the key.
        encryption_type=package.ENCRYPTION_TYPE.SYMMETRIC,
        n_threads=1,
    )
    context.global_scale = 2.0**settings.scale_bits
    return context


def _parameters(settings: CKKS) -> bytes:
    """The same bytes whenever it is called: a context without its key."""
    return _bytes(_context(settings), secret=False)


def _bytes(context: Any, secret: bool) -> bytes:
    out: bytes = context.serialize(
        save_public_key=False, save_secret_key=secret, save_galois_keys=False, save_relin_keys=False
    )
    return out


def _split(size: int, slots: int) -> list[range]:
    return [range(start, min(start + slots, size)) for start in range(0, size, slots)]


def _unframed(data: memoryview) -> Iterator[bytes]:
    place = 0
    while place < len(data):
        head = place + _LENGTH.size
        if head > len(data):
            raise ProtocolError("the ciphertexts are cut short")
        (length,) = _LENGTH.unpack(data[place:head])
        if head + length > len(data):
            raise ProtocolError("the ciphertexts are cut short")
        yield bytes(data[head : head + length])
        place = head + length
