"""The layers that R-GAP walks back through: linear operators as matrices, and activations with their inverses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

Array = NDArray[np.float64]
Matrix: TypeAlias = Array | sparse.csr_array

EDGE = 1e-12
"""How near to the end of its range an activation's output may come before it is inverted."""

DEAD = 1e-4
"""Outputs of a ReLU not above this share of their root mean square count as 0: a recovered 0 is never exactly 0."""


@dataclass(frozen=True)
class Operator:
    """A layer z = matrix x + shift of one example, and how its weight's gradient comes about.

    matrix: (outputs, inputs), dense of a linear layer, sparse of a convolution. shift: (outputs,), the biases.
    places: (taps, positions): which place of an input channel meets which tap of the kernel at which output position;
        -1 in the padding. A linear layer has one tap and one position, and a channel for every input.
    channels, filters: of the input and of the output. size: places of one input channel.
    after: the shape of the output.
    """

    matrix: Matrix
    shift: Array
    places: NDArray[np.int64]
    channels: int
    filters: int
    size: int
    after: tuple[int, ...]

    @property
    def unknowns(self) -> int:
        """How many numbers the layer's input has."""
        return self.channels * self.size

    def gradient_block(self, slope: Array) -> Array:
        """G of (filters * taps, size), for which dL/dweight[:, c, :] is G x[c], for every input channel c alike.

        slope: (outputs,), dL/dz. By the chain rule dL/dweight[o, c, t] is the sum over positions l of
        slope[o, l] * x[c, places[t, l]], which is linear in x.
        """
        taps, positions = self.places.shape
        block = np.zeros((self.filters, taps, self.size))
        tap, position = np.nonzero(self.places >= 0)
        values = slope.reshape(self.filters, positions)
        # At one tap no two positions meet the same place, so that plain assignment adds nothing twice.
        block[:, tap, self.places[tap, position]] = values[:, position]
        return block.reshape(self.filters * taps, self.size)

    def gradient_rows(self, gradient: Tensor) -> Array:
        """The weight's gradient as (filters * taps, channels), the right side to `gradient_block`."""
        taps = self.places.shape[0]
        rows = double(gradient).reshape(self.filters, self.channels, taps)
        return rows.transpose(0, 2, 1).reshape(self.filters * taps, self.channels)


def linear(weight: Tensor, bias: Tensor | None) -> Operator:
    """The operator of a linear layer. weight: (out, in)."""
    matrix = double(weight)
    filters, channels = matrix.shape
    shift = np.zeros(filters) if bias is None else double(bias)
    return Operator(matrix, shift, np.zeros((1, 1), np.int64), channels, filters, 1, (filters,))


def convolution(layer: nn.Conv2d, weight: Tensor, bias: Tensor | None, before: tuple[int, int, int]) -> Operator:
    """The operator of a convolution with zero padding and without groups, for inputs of the shape `before`.

    weight: (out, C, rows, columns). Output o at position l is the sum over channels c and taps t of
    weight[o, c, t] * x[c, places[t, l]].
    """
    channels, rows, columns = before
    filters, size = weight.shape[0], rows * columns
    numbers = torch.arange(1, size + 1, dtype=torch.float64).reshape(1, 1, rows, columns)  # so that padding is 0
    padded = functional.pad(numbers, _sides(layer))
    places = functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)[0].long().numpy() - 1
    taps, positions = places.shape
    tap, position = np.nonzero(places >= 0)
    # An entry for each filter, each channel, and each pair of tap and position that is inside the image.
    shape = (filters, channels, len(tap))
    row = np.broadcast_to(np.arange(filters)[:, None, None] * positions + position, shape)
    column = np.broadcast_to(np.arange(channels)[None, :, None] * size + places[tap, position], shape)
    values = double(weight).reshape(filters, channels, taps)[:, :, tap]
    matrix = sparse.csr_array(
        (values.ravel(), (row.ravel(), column.ravel())), shape=(filters * positions, channels * size)
    )
    shift = np.zeros(filters) if bias is None else double(bias)
    height = (padded.shape[2] - layer.dilation[0] * (layer.kernel_size[0] - 1) - 1) // layer.stride[0] + 1
    after = (filters, height, positions // height)
    return Operator(matrix, np.repeat(shift, positions), places, channels, filters, size, after)


def _sides(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Zeros to the left, right, top and bottom. `same` puts the odd one behind, as PyTorch does."""
    if layer.padding == "valid":
        return 0, 0, 0, 0
    if layer.padding == "same":
        down, across = (step * (kernel - 1) for step, kernel in zip(layer.dilation, layer.kernel_size, strict=True))
        return across // 2, across - across // 2, down // 2, down - down // 2
    down, across = (int(side) for side in layer.padding)
    return across, across, down, down


def double(value: Tensor) -> Array:
    """The tensor as float64 on the CPU, where the linear algebra is done."""
    out: Array = value.detach().cpu().double().contiguous().numpy()
    return out


@dataclass(frozen=True)
class Inverse:
    """An activation a(z) that can be undone.

    inverse: z from a. derivative: a'(z). range: the open interval that a falls into; None where it is all numbers.
    flat: whether a(z) is constant below 0, so that z is not known where a is 0.
    """

    inverse: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    range: tuple[float, float] | None = None
    flat: bool = False

    def undo(self, values: Array) -> tuple[Array, Array, int]:
        """z, a'(z), and how many values were outside of the range, which are moved inside first.

        Of a flat activation, a value that is not above `DEAD` times the root mean square counts as 0. The derivative
        is 0 there, and so neither the slope of the loss nor any weight constraint goes by that z.
        """
        if self.flat:
            alive = values > DEAD * np.sqrt(np.mean(values**2))
            return np.where(alive, values, -1.0), alive.astype(np.float64), int((~alive).sum())
        inside = values if self.range is None else np.clip(values, self.range[0] + EDGE, self.range[1] - EDGE)
        z = self.inverse(inside)
        return z, self.derivative(z), int((inside != values).sum())


def activation(module: nn.Module) -> Inverse | None:
    """How to undo an activation; None for a module that is none, or cannot be undone."""
    if isinstance(module, nn.Identity):
        return Inverse(lambda a: a, np.ones_like)
    if isinstance(module, nn.ReLU) or (isinstance(module, nn.LeakyReLU) and module.negative_slope == 0):
        return Inverse(lambda a: a, lambda z: (z > 0).astype(np.float64), flat=True)
    if isinstance(module, nn.LeakyReLU) and module.negative_slope > 0:
        slope = module.negative_slope
        return Inverse(lambda a: np.where(a < 0, a / slope, a), lambda z: np.where(z > 0, 1.0, slope))
    if isinstance(module, nn.Sigmoid):
        return Inverse(lambda a: np.log(a) - np.log1p(-a), lambda z: 1 / (2 + np.exp(z) + np.exp(-z)), (0.0, 1.0))
    if isinstance(module, nn.Tanh):
        return Inverse(np.arctanh, lambda z: np.cosh(z) ** -2, (-1.0, 1.0))
    return None
