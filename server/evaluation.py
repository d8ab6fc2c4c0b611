"""The server's own test: the global model on the held-out images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedsim import batchnorm
from fedsim.data.dataset import ImageData
from fedsim.models.loss import cross_entropy

BATCH = 500


@torch.no_grad()
def evaluate(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    running: Mapping[str, Tensor],
    policy: str,
    data: ImageData,
) -> tuple[float, float]:
    """(mean loss, accuracy in [0, 1]) of the global parameters on the whole test set."""
    for name, value in model.named_parameters():
        value.copy_(parameters[name])
    batchnorm.testing_mode(model, policy)
    if policy != "local":
        batchnorm.load_statistics(model, running)
    device = next(model.parameters()).device
    loss = torch.zeros((), device=device)
    right = torch.zeros((), device=device)
    for indices in torch.arange(len(data.test)).split(BATCH):
        batch = data.test.batch(indices)
        labels = batch.labels.to(device)
        logits = model(data.normalisation(batch.images.to(device)))
        loss += cross_entropy(logits, labels) * len(indices)
        right += (logits.argmax(1) == labels).sum()
    return float(loss) / len(data.test), float(right) / len(data.test)
