"""What travels between a client and the server, and what it is made of.

A train request carries the record `arrays` (the global parameters), `buffers` (BatchNorm statistics, where the policy
shares them) and `config`. A train reply carries `update`, `buffers` and `metrics`. Parameters and buffers never share a
record, so nothing that works on an update (clipping, noise, pruning, averaging) can reach a buffer by accident.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

ARRAYS = "arrays"
BUFFERS = "buffers"
CONFIG = "config"
UPDATE = "update"
METRICS = "metrics"

ROUND = "server-round"
NUM_EXAMPLES = "num-examples"
NUM_STEPS = "num-steps"
TRAIN_LOSS = "train-loss"
"""Absent where the client protects it."""
EPSILON = "epsilon"
"""What a client's private training has cost in all rounds so far, with `delta`; absent where it is not private."""
DELTA = "delta"
CLEAR = {"train_loss": (TRAIN_LOSS,), "epsilon": (EPSILON, DELTA)}
"""Numbers that a client may tell beside a sealed update, by the word of a secure aggregation's `metrics`."""


@dataclass(frozen=True)
class Batch:
    """Images with their labels, as a client trains on them.

    images: float32, (N, C, H, W), in [0, 1].
    labels: int64 (N,), or float32 (N, classes) where a defense mixes labels.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Update:
    """What a client sends: the broadcast parameters minus its own after training, by parameter name.

    With one step at rate 1 that is exactly the gradient. Buffers are not part of it.
    """

    tensors: Mapping[str, Tensor]

    def map(self, change: Callable[[Tensor], Tensor]) -> Update:
        """A new update with `change` applied to every parameter tensor."""
        return replace(self, tensors={name: change(value) for name, value in self.tensors.items()})

    def norm(self) -> Tensor:
        """The L2 norm over all parameters together, a scalar tensor."""
        import torch

        return torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(value) for value in self.tensors.values()])
        )
