"""A multilayer perceptron."""

from __future__ import annotations

from collections import OrderedDict
from math import prod

from torch import nn

from fedsim.models.activations import activation as make


def mlp(
    shape: tuple[int, int, int], classes: int, *, hidden: tuple[int, ...] = (128,), activation: str = "relu"
) -> nn.Sequential:
    """Linear layers of `hidden` units, each followed by the activation, then one of `classes`.

    With no hidden layer it is logistic regression. Input (N, C, H, W), normalised; output (N, classes),
    logits.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    before = prod(shape)
    for place, units in enumerate(hidden, start=1):
        layers[f"fc{place}"] = nn.Linear(before, units)
        layers[f"act{place}"] = make(activation)
        before = units
    layers[f"fc{len(hidden) + 1}"] = nn.Linear(before, classes)
    return nn.Sequential(layers)
