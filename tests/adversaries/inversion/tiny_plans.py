"""Plans and knowledge about tiny networks in float64, for tests of the step and of what runs it. No test is in here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedsim import batchnorm
from fedsim.adversaries.base import Observation
from fedsim.adversaries.inversion import objectives, statistics
from fedsim.adversaries.inversion.step import Guess, Knowledge, Plan
from fedsim.models.loss import cross_entropy

CPU = torch.device("cpu")
HARD = torch.tensor([1, 2])
SOFT = torch.tensor([[0.3, 0.7, 0.0], [0.0, 0.1, 0.9]], dtype=torch.float64)


def images(seed: int, count: int = 2) -> Tensor:
    """(count, 1, 4, 4)."""
    return torch.randn(count, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


TRUTH = images(3)


def convolutional() -> nn.Module:
    """No BatchNorm, three classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)]
        return nn.Sequential(*layers).double()


def normalised() -> nn.Module:
    """Two BatchNorm layers with running statistics and parameters that are none of the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, last = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(12, 3)
        model = nn.Sequential(
            first, nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), last
        )
        for layer in batchnorm.layers(model).values():
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.normal_(layer.weight, 1, 0.1)
            nn.init.normal_(layer.bias, 0, 0.1)
        return model.double()


def shown(model: nn.Module, labels: Tensor, truth: Tensor) -> tuple[list[Tensor], Observation]:
    """The gradient of a client in training mode, and its batch and running statistics as an observation."""
    running = batchnorm.statistics(model)
    model.train()
    with batchnorm.recording(model) as passes:
        loss = cross_entropy(model(truth), labels)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    batchnorm.load_statistics(model, running)
    known = {key: value for source in (passes[0] if passes else {}, running) for key, value in source.items()}
    tensors = {f"known/{key.rpartition('.')[2]}/{key.rpartition('.')[0]}": value for key, value in known.items()}
    return list(gradient), Observation(1, 0, "link", tensors, {})


def victim(
    model: nn.Module | None = None,
    *,
    labels: Tensor = HARD,
    truth: Tensor = TRUTH,
    mode: str = "none",
    objective: str = "cosine",
    scheme: str = "equal",
    last: str | None = None,
    **plan: Any,
) -> tuple[Plan, Knowledge]:
    """What a step does and knows. mode: of BatchNorm. last: the layer that a prior on features is about; its features
    are then those of the truth. plan: what else `Plan` has.
    """
    model = model or convolutional()
    gradient, seen = shown(model, labels, truth)
    wanted: list[Tensor] = []
    if last is not None:
        handle = model.get_submodule(last).register_forward_pre_hook(lambda _, x: wanted.append(x[0].detach()))
        model.eval()(truth)
        handle.remove()
    norms = statistics.install(model.train(), mode, seen, CPU)
    made = Plan(
        frame=model,
        norms=norms,
        objective=objectives.named(objective, 0.3),
        layers=objectives.layer_weights(scheme, len(gradient)),
        last=None if last is None else model.get_submodule(last),
    )
    knowledge: Knowledge = {
        "parameters": {name: value.detach() for name, value in model.named_parameters()},
        "buffers": {name: value.detach() for name, value in model.named_buffers()},
        "target": gradient,
        "masks": [],
        "labels": labels,
        "wanted": list(norms.wanted),
        "features": wanted[0] if wanted else [],
    }
    return replace(made, **plan), knowledge


def stack(count: int) -> Guess:
    """A stack of first guesses."""
    return {"images": torch.stack([images(10 + place) for place in range(count)])}
