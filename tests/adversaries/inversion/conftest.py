"""A victim in miniature: eight-pixel digits, a small model, and the observation that an eavesdropper has of a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.adversaries.base import Observation
from fedsim.data.dataset import Normalisation
from fedsim.models.building import build
from fedsim.models.catalog import MLP
from fedsim.models.loss import cross_entropy
from fedsim.protocol import Batch, Update

MEAN, STD = 0.3, 0.4


def digits(count: int, seed: int = 0) -> Batch:
    """Handwritten digits of 8x8 pixels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    where = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))[:count]
    images = torch.tensor(data.images, dtype=torch.float32)[where][:, None] / 16
    return Batch(images, torch.tensor(data.target, dtype=torch.int64)[where])


def observe(
    count: int = 2, settings: Any = None, name: str = "mlp", defenses: tuple[Any, ...] = (), **facts: Any
) -> tuple[Observation, Batch]:
    """What a link shows of one FedSGD step of a model without BatchNorm, and the private batch."""
    settings = settings or MLP(hidden=(64,), activation="tanh")
    model = build(settings, (1, 8, 8), 10, seed=0)
    batch = digits(count)
    own = dict(model.named_parameters())
    loss = cross_entropy(model(Normalisation((MEAN,), (STD,))(batch.images)), batch.labels)
    update = Update(dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True)))
    rng = torch.Generator().manual_seed(1)
    for defense in defenses:
        update = defense.perturb(update, rng)
    tensors: dict[str, Tensor] = {f"model/{key}": value.detach() for key, value in own.items()}
    tensors |= {f"update/{key}": value for key, value in update.tensors.items()}
    known = {
        # As after a journey through JSON: lists, no tuples.
        "model": {
            "name": name,
            "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(settings).items()},
        },
        "image_shape": [1, 8, 8],
        "classes": 10,
        "mean": [MEAN],
        "std": [STD],
        "batchnorm": "local",
        "algorithm": "fedsgd",
        "num_examples": count,
        "num_steps": 1,
        "learning_rate": 0.1,
        "batch_size": count,
        "momentum": 0.0,
        "weight_decay": 0.0,
        **facts,
    }
    return Observation(1, 0, "link", {**tensors, "known/labels": batch.labels}, known), batch


@pytest.fixture
def victim_of() -> Callable[..., tuple[Observation, Batch]]:
    """`victim_of(count, settings, name, defenses, **facts)` -> (Observation, the private Batch)."""
    return observe
