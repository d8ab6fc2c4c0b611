"""The sigmoid LeNet of "Deep Leakage from Gradients" (Zhu, Liu, Han, NeurIPS 2019), which that attack is shown on."""

from __future__ import annotations

from collections import OrderedDict
from math import ceil

import torch
from torch import nn

from fedsim.models.activations import activation as make

KERNEL = 5
STRIDES = (2, 2, 1, 1)


def lenet(
    shape: tuple[int, int, int],
    classes: int,
    *,
    layers: int = 3,
    width: int = 12,
    activation: str = "sigmoid",
    init: str = "dlg",
) -> nn.Sequential:
    """`layers` (at most 4) 5x5 convolutions of `width` channels with strides 2, 2, 1, 1, then one linear layer.

    Strides instead of pooling and a smooth activation: both keep second derivatives alive, which L-BFGS
    needs.
    Input (N, C, H, W), normalised, of any size; output (N, classes), logits. `init = "dlg"` draws every
    weight and bias from uniform(-0.5, 0.5), as the paper's code does; with PyTorch's own (`"default"`) the
    gradients of a sigmoid network are too small for the attack to go by.
    """
    channels, rows, columns = shape
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for place, stride in enumerate(STRIDES[:layers], start=1):
        modules[f"conv{place}"] = nn.Conv2d(channels, width, KERNEL, stride=stride, padding=KERNEL // 2)
        modules[f"act{place}"] = make(activation)
        channels, rows, columns = width, ceil(rows / stride), ceil(columns / stride)
    modules["flatten"] = nn.Flatten()
    modules["fc"] = nn.Linear(channels * rows * columns, classes)
    network = nn.Sequential(modules)
    if init == "dlg":
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.uniform_(-0.5, 0.5)
    return network
