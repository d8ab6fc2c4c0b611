"""The strided convolutional network of "R-GAP: Recursive Gradient Attack on Privacy" (Zhu, Blaschko, ICLR 2021)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

SLOPE = 0.2
"""Of LeakyReLU below zero. It must not be 0: the activation has to be invertible."""

KERNELS = (4, 3, 3, 3, 3, 3)
STRIDES = (2, 2, 1, 1, 2, 1)
PADDINGS = (2, 1, 1, 1, 1, 1)


def cnn6(
    shape: tuple[int, int, int],
    classes: int,
    *,
    channels: tuple[int, ...] = (12, 36, 36, 36, 64, 128),
    bias: bool = False,
) -> nn.Sequential:
    """Six convolutions with LeakyReLU, strides 2, 2, 1, 1, 2, 1 instead of pooling, then one linear layer.

    Input (N, C, H, W), normalised, of any size; output (N, classes), logits. `channels` are those of the six
    convolutions, `bias` is for all layers.
    """
    before, rows, columns = shape
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for place, (after, kernel, stride, padding) in enumerate(
        zip(channels, KERNELS, STRIDES, PADDINGS, strict=True), start=1
    ):
        modules[f"conv{place}"] = nn.Conv2d(before, after, kernel, stride=stride, padding=padding, bias=bias)
        modules[f"act{place}"] = nn.LeakyReLU(SLOPE)
        before = after
        rows, columns = ((size + 2 * padding - kernel) // stride + 1 for size in (rows, columns))
    modules["flatten"] = nn.Flatten()
    modules["fc"] = nn.Linear(before * rows * columns, classes, bias=bias)
    return nn.Sequential(modules)
