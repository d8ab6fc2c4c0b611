"""Additions to a sum in several threads: the bits are those of one thread, and what fails in a thread is heard."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from secagg.driving import LAYOUT

from fedsim.secagg import vectors
from fedsim.secagg.base import Terms
from fedsim.secagg.masks import add_mask
from fedsim.secagg.quantization import Codec
from fedsim.secagg.vectors import RingSum


def ring(bits: int = 32) -> RingSum:
    made = RingSum(Codec(Terms(1, 3, 8, 1, LAYOUT), bits, 4.0, 64.0), range(3))
    made.value[:] = np.arange(len(made.value))
    return made


def masked(seed: bytes, sign: int, vector: NDArray[np.unsignedinteger]) -> None:
    add_mask(vector, seed, sign)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_the_bits_do_not_depend_on_the_threads(monkeypatch: pytest.MonkeyPatch, bits: int, threads: int) -> None:
    seeds = [os.urandom(32) for _ in range(7)]
    one_by_one = ring(bits).value
    for place, seed in enumerate(seeds):
        add_mask(one_by_one, seed, (-1) ** place)
    monkeypatch.setattr(vectors, "LONG", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    at_once = ring(bits)
    at_once.apply([partial(masked, seed, (-1) ** place) for place, seed in enumerate(seeds)])
    assert np.array_equal(at_once.value, one_by_one)


def test_without_additions_the_sum_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "LONG", 1)
    made = ring()
    made.apply([])
    assert np.array_equal(made.value, ring().value)


def test_what_fails_in_another_thread_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "LONG", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ValueError, match="32 bytes"):
        ring().apply([partial(masked, bytes(32), 1), partial(masked, bytes(5), 1)])
