"""Masks: the standard's keystream, added in place, gone when subtracted, and without any trace of what they hide."""

from __future__ import annotations

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray
from scipy.stats import chi2

from fedsim.secagg.masks import BLOCK, add_mask, keystream

DTYPES = [np.uint32, np.uint64]
LENGTHS = [0, 1, 3, 1000, BLOCK // 8 - 1, BLOCK // 4, BLOCK // 4 + 1, BLOCK + 17]


def test_the_keystream_is_that_of_rfc_8439() -> None:
    """Appendix A.1, vectors 1 and 2: key and nonce zero, the blocks with counters 0 and 1."""
    assert keystream(bytes(32), 128) == bytes.fromhex(
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    )


def test_the_library_counts_in_front_of_the_nonce() -> None:
    """Section 2.3.2: its 16-byte nonce is the counter, little endian, and the nonce of the standard."""
    counter, nonce = (1).to_bytes(4, "little"), bytes.fromhex("000000090000004a00000000")
    block = Cipher(ChaCha20(bytes(range(32)), counter + nonce), mode=None).encryptor().update(bytes(64))
    assert block == bytes.fromhex(
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )


def some(dtype: type[np.unsignedinteger], length: int) -> NDArray[np.unsignedinteger]:
    return np.random.default_rng(length).integers(0, np.iinfo(dtype).max, length, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_the_keystream_added_word_by_word(dtype: type[np.unsignedinteger], length: int) -> None:
    seed, start = os.urandom(32), some(dtype, length)
    mask = np.frombuffer(keystream(seed, start.nbytes), np.dtype(dtype).newbyteorder("<"))
    vector = start.copy()
    assert add_mask(vector, seed, 1) is None
    assert np.array_equal(vector, start + mask) and vector.dtype == dtype
    add_mask(vector, seed, -1)
    assert np.array_equal(vector, start)
    add_mask(vector, seed, -1)
    assert np.array_equal(vector, start - mask)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_part_of_a_vector_is_masked_in_place(dtype: type[np.unsignedinteger]) -> None:
    vector = np.zeros(100, dtype)
    add_mask(vector[10:30], bytes(32), 1)
    assert not vector[:10].any() and not vector[30:].any() and vector[10:30].all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0, 1, 2**31])
def test_no_byte_of_a_masked_constant_is_likelier_than_another(dtype: type[np.unsignedinteger], value: int) -> None:
    """Chi-square at each byte of a word; the limit is passed by chance once in 10^9."""
    vector = np.full(1 << 18, value, dtype)
    add_mask(vector, os.urandom(32), 1)
    for place in range(vector.itemsize):
        counts = np.bincount(vector.view(np.uint8)[place :: vector.itemsize], minlength=256)
        expected = len(vector) / 256
        assert ((counts - expected) ** 2).sum() / expected < chi2.isf(1e-9, 255)


def test_masks_of_two_seeds_are_not_correlated() -> None:
    """Nor are those of seeds that differ in one bit, nor a vector with itself one word on: |r| sqrt(n) is normal."""
    length, seed = 1 << 18, os.urandom(32)
    near = bytes([seed[0] ^ 1]) + seed[1:]
    masks = []
    for one in (seed, near, os.urandom(32)):
        vector = np.zeros(length, np.uint32)
        add_mask(vector, one, 1)
        masks.append(vector.astype(np.float64))
    pairs = [(masks[0], masks[1]), (masks[0], masks[2]), (masks[0][1:], masks[0][:-1])]
    for first, second in pairs:
        assert abs(np.corrcoef(first, second)[0, 1]) * np.sqrt(length) < 6


def test_what_is_no_vector_of_the_ring_is_refused() -> None:
    seed = bytes(32)
    for vector in (np.zeros(4, np.int32), np.zeros(4), np.zeros((2, 2), np.uint32), np.zeros(8, np.uint32)[::2]):
        with pytest.raises(ValueError, match="contiguous vector"):
            add_mask(vector, seed, 1)
    with pytest.raises(ValueError, match="sign"):
        add_mask(np.zeros(4, np.uint32), seed, 0)
    for length in (0, 16, 31, 33):
        with pytest.raises(ValueError, match="32 bytes"):
            add_mask(np.zeros(4, np.uint32), bytes(length), 1)
