"""The one training loss. Victim and attacker both use it: a silent mismatch of the two makes any inversion fail."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, averaged over the batch; a scalar.

    logits: (N, classes).
    labels: int64 (N,), or float (N, classes) where labels are mixed; each row then weighs the classes
    (usually summing to 1).
    """
    return F.cross_entropy(logits, labels)
