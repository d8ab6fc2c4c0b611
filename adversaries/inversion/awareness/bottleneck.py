"""PRECODE, which is a part of the model: the noise of its bottleneck enters the gradients behind it as a factor."""

from __future__ import annotations

import torch
from torch import nn

from fedsim.adversaries.inversion.awareness.base import Matched, Place
from fedsim.models import precode


def without_bottleneck(matched: Matched, model: nn.Module, place: Place) -> Matched:
    """The bottleneck and what stands behind it do not count (see `parameters_behind`). A model without one changes
    nothing.
    """
    behind = precode.parameters_behind(model)
    if not behind:
        return matched
    masks = [
        torch.tensor(float(name not in behind), dtype=value.dtype, device=value.device)
        for name, value in zip(place.names, matched.target, strict=True)
    ]
    text = f"precode: leaves out the {len(behind)} tensors of the bottleneck and of what stands behind it"
    return matched.counting(masks).saying(text)
