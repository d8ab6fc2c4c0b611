"""Whether a model's per-example gradients can be had, found out by trying, before a run is under way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fedsim.clients.private.gradients import per_example
from fedsim.models.loss import training_loss
from fedsim.protocol import Batch

TOLERANCE = 1e-3
"""Largest difference of a gradient in a batch and alone, relative to its norm."""


def trial(model: nn.Module, shape: tuple[int, int, int], classes: int) -> str | None:
    """Why not, or None. Two random images must have the same gradients together as each of them alone."""
    weights = list(model.parameters())
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(2, *shape, generator=rng).to(weights[0].device)
    batch = Batch(images, torch.tensor([0, classes - 1], device=images.device))

    with _quiet(model):
        try:
            with per_example(model) as gradients:
                together = gradients(training_loss(model, model(batch.images), batch.labels))
        except (NotImplementedError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            return f"its per-example gradients cannot be had; Opacus says: {lines[0][:200]}"
        for row in range(2):
            logits = model(batch.images[row : row + 1])
            loss = training_loss(model, logits, batch.labels[row : row + 1])
            alone = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
            norm = torch.stack([value.norm() for value in alone]).norm()
            apart = torch.stack([(both[row] - one).norm() for both, one in zip(together, alone, strict=True)]).norm()
            if not apart <= TOLERANCE * norm + 1e-8:
                return "an image's gradient depends on the others in its batch, so clipping it bounds nothing"
    return None


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """The model without the randomness that would tell two passes apart, which sits in layers without parameters."""
    noisy = [one for one in model.modules() if one.training and next(one.parameters(recurse=False), None) is None]
    try:
        for one in noisy:
            one.training = False
        yield
    finally:
        for one in noisy:
            one.training = True
