"""Vectors as integers: no sum overflows, and the mean is off by no more than the bound, whatever the settings."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from fedsim.errors import ProtocolError
from fedsim.secagg.base import Contribution, Layout, Terms
from fedsim.secagg.limits import LARGEST, scale
from fedsim.secagg.quantization import Codec

CLIPS = (0.1, 0.3, 0.5, 1.0, 1.5, 4.0)


def codec(bits: int, clip: float, clients: int, examples: int) -> Codec:
    return Codec(Terms(0, clients, examples, 1, Layout({"w": (4,)})), bits, clip, 64.0)


def summed(one: Codec, values: torch.Tensor, examples: int) -> torch.Tensor:
    """The mean of as many clients as can be, each with the same values."""
    vector = one.encode(Contribution({"w": values}, {}, examples, 1))
    total = np.zeros_like(vector)
    for _ in range(one.terms.clients):
        np.add(total, vector, out=total)
    return one.decode(total, range(one.terms.clients)).update["w"]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("clip", CLIPS)
def test_no_sum_of_the_largest_values_overflows(bits: int, clip: float) -> None:
    """Weights that are powers of two leave no room by chance: 8 clients of 16 examples are 2^7."""
    for clients in (2, 3, 5, 8, 10, 16):
        for examples in (1, 2, 3, 7, 16, 33):
            one = codec(bits, clip, clients, examples)
            mean = summed(one, torch.tensor([2 * clip, -2 * clip, clip, -clip]), examples)
            wanted = torch.tensor([clip, -clip, clip, -clip], dtype=torch.float64)
            assert (mean - wanted).abs().max() <= 1.04 * one.error, (clients, examples)


@pytest.mark.parametrize("bits", [32, 64])
def test_the_bound_holds_for_either_ring(bits: int) -> None:
    """With float64's own rounding, in which a scale beyond 2^53 would drown the bound."""
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).clamp(-4, 4)
    one = Codec(Terms(0, 2, 1, 1, Layout({"w": (1000,)})), bits, 4.0, 64.0)
    assert (summed(one, values, 1) - values.double()).abs().max() <= one.error


def test_the_scale_is_the_largest_that_fits() -> None:
    for bits, largest in LARGEST.items():
        for clip in CLIPS:
            for weight in (2, 7, 128, 1000):
                s = scale(bits, clip, weight)
                room = largest // weight
                assert Fraction(clip) * s <= room < Fraction(clip) * (s + 1)


def test_what_is_clipped_is_counted_and_what_is_not_finite_is_refused() -> None:
    one = codec(32, 1.0, 3, 4)
    vector = one.encode(Contribution({"w": torch.tensor([2.0, -3.0, 1.0, 0.0])}, {}, 4, 1))
    assert one.decode(np.multiply(vector, 3, dtype=vector.dtype), range(3)).clipped == 6
    for value, name in ((float("nan"), "NaN"), (float("-inf"), "Inf")):
        with pytest.raises(ProtocolError, match=f"update/w holds {name}"):
            one.encode(Contribution({"w": torch.tensor([0.0, value, 0.0, 0.0])}, {}, 4, 1))
