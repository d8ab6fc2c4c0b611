"""Layers of a network by what they are for."""

from __future__ import annotations

from torch import nn


def last_linear(model: nn.Module, classes: int | None = None) -> str | None:
    """The name of the last fully connected layer, with `classes` outputs where the number is given; None without one.

    Last by the order in which the model lists its layers, which is the order of the pass in every model of fedsim.
    """
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and classes in (None, module.out_features)
    ]
    return found[-1] if found else None
