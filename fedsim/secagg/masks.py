"""Masks: the keystream of ChaCha20 (RFC 8439), added to a vector of the ring of integers modulo 2^32 or 2^64.

Every word of the keystream is a uniform element of the ring: nothing is rejected, and sums wrap by themselves.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

SEED = 32
"""Bytes of a seed: a key of ChaCha20."""

BLOCK = 1 << 20
"""Bytes of keystream at once: they are still in the cache when they are added."""

ZEROS = bytes(BLOCK)
"""What is encrypted: the ciphertext of zeros is the keystream."""

# Counter and nonce are both zero: a seed is used for one mask.
START = bytes(16)


def add_mask(vector: NDArray[np.unsignedinteger], seed: bytes, sign: int) -> None:
    """Add (sign 1) or subtract (sign -1) the mask of a seed, in place, modulo 2^32 or 2^64.

    vector: one-dimensional, contiguous, uint32 or uint64, of any length. The keystream is read as little-endian words.
    Raises ValueError for any other vector, seed or sign.
    """
    if vector.dtype not in (np.uint32, np.uint64) or vector.ndim != 1 or not vector.flags.c_contiguous:
        raise ValueError(f"a mask is added to a contiguous vector of uint32 or uint64, not {vector.dtype}")
    if sign not in (1, -1):
        raise ValueError(f"a mask is added with sign 1 or -1, not {sign}")
    stream = _stream(seed)
    combine = np.add if sign == 1 else np.subtract
    buffer = bytearray(min(BLOCK, max(vector.nbytes, vector.itemsize)))
    words = np.frombuffer(buffer, vector.dtype.newbyteorder("<"))
    zeros = memoryview(ZEROS)
    for start in range(0, len(vector), len(words)):
        block = vector[start : start + len(words)]
        stream.update_into(zeros[: block.nbytes], buffer)
        combine(block, words[: len(block)], out=block)


def keystream(seed: bytes, length: int) -> bytes:
    """The first bytes of a seed's keystream, as `add_mask` reads them."""
    return _stream(seed).update(bytes(length))


def _stream(seed: bytes) -> CipherContext:
    if len(seed) != SEED:
        raise ValueError(f"the seed of a mask has {SEED} bytes, not {len(seed)}")
    return Cipher(ChaCha20(seed, START), mode=None).encryptor()
