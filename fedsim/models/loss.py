"""The one training loss. Victim and attacker both use it: a silent mismatch of the two makes any inversion fail."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def training_loss(model: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy plus the model's own regulariser; a scalar. `logits` are what the model has just returned."""
    loss, penalty = cross_entropy(logits, labels), regulariser(model)
    return loss if penalty is None else loss + penalty


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, averaged over the batch; a scalar.

    logits: (N, classes).
    labels: int64 (N,), or float (N, classes) where labels are mixed; each row then weighs the classes
    (usually summing to 1).
    """
    return F.cross_entropy(logits, labels)


def regulariser(model: nn.Module) -> Tensor | None:
    """What the model's layers add to the loss of its last forward pass, a scalar; None if they add nothing.

    To be read once after a pass, as the layers forget it: any layer with a method `take_penalty() -> Tensor | None`,
    such as `precode.Bottleneck`. Nothing is kept that belongs to a transform of `torch.func`.
    """
    total: Tensor | None = None
    for module in model.modules():
        if hasattr(type(module), "take_penalty"):
            penalty = module.take_penalty()  # type: ignore[operator]
            if penalty is not None:
                total = penalty if total is None else total + penalty
    return total
