"""Tiny federations, made up: a model, a few images, and what a client's training comes to. Milliseconds each.

Neither attackers nor defenses are known here; `observations` shows a scene to the former, `sites` to the latter.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim import batchnorm, seeding
from fedsim.data.dataset import Normalisation
from fedsim.models.building import Model, build
from fedsim.models.catalog import CNN6, MLP, ConvNet6, ViT
from fedsim.models.loss import training_loss
from fedsim.models.tiny import TinyBatchNorm
from fedsim.protocol import Batch

CLASSES = 4
RATE = 0.1
"""Of the local SGD."""
MIXED = 2
"""Images in a mixture."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Scene:
    """A federation to try a plugin in.

    model, settings: a component's name and settings. shape: (C, H, W). batch: images a local step. clients: whose
    updates are looked at; of several, their sum. rounds: how many. steps: local ones. mixes: whether the clients train
    on mixtures. still: whether the model and the batches stay what they are from round to round.
    """

    name: str
    model: str = "mlp"
    settings: Model = field(default_factory=lambda: MLP(hidden=(32,)))
    shape: tuple[int, int, int] = (1, 8, 8)
    batch: int = 3
    clients: tuple[int, ...] = (0,)
    rounds: int = 1
    policy: str = "share_running"
    algorithm: str = "fedsgd"
    steps: int = 1
    mixes: bool = False
    still: bool = False

    @property
    def normalisation(self) -> Normalisation:
        """Of the images."""
        return Normalisation((0.5,) * self.shape[0], (0.25,) * self.shape[0])

    def built(self) -> nn.Module:
        """The model as its clients train it."""
        model = batchnorm.apply_policy(build(self.settings, self.shape, CLASSES, 1), self.policy)
        batchnorm.training_mode(model, self.policy)
        return model

    def describe(self) -> dict[str, Any]:
        """The model's component, as a manifest has it."""
        return {"name": self.model, "settings": asdict(self.settings)}  # type: ignore[call-overload]


@dataclass(frozen=True, eq=False)
class Played:
    """What one client had and did in one round of a scene.

    private: its images, with whole labels. trained: as it trained on them. parameters, buffers: the broadcast ones.
    update: as it would leave without a defense. statistics: of its batch, `LAYER.mean` and `LAYER.var`. running:
    `LAYER.running_mean` and `LAYER.running_var`. indices, coefficients: (N, k), of mixtures.
    """

    private: Batch
    trained: Batch
    parameters: Tensors
    buffers: Tensors
    update: Tensors
    statistics: Tensors
    running: Tensors
    indices: Tensor
    coefficients: Tensor


@functools.lru_cache(maxsize=64)
def play(scene: Scene, client: int, round_: int) -> Played:
    """A client's round: a pure function of its arguments. What it returns is shared: clone before you hand it out."""
    model, time = scene.built(), 1 if scene.still else round_
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    drift = seeding.generator(0, "drift", time)
    parameters = {name: value + 0.01 * torch.randn(value.shape, generator=drift) for name, value in parameters.items()}
    running = batchnorm.statistics(model)
    private = images(scene, scene.batch * scene.steps, client, time)
    trained, indices, coefficients = _encoded(scene, private)
    update, passes = _train(scene, model, parameters, trained)
    statistics = batchnorm.mean_statistics(passes)
    sent = batchnorm.broadcast(scene.policy, running)
    return Played(private, trained, parameters, sent, update, statistics, running, indices, coefficients)


def images(scene: Scene, count: int, client: int = 0, round_: int = 1) -> Batch:
    """Smooth made-up images, float32 in [0, 1], with labels that go round the classes."""
    rng = seeding.generator(0, "images", client, round_)
    coarse = torch.rand(count, scene.shape[0], 4, 4, generator=rng)
    smooth = nn.functional.interpolate(coarse, scene.shape[1:], mode="bilinear", align_corners=False)
    return Batch(smooth, (torch.arange(count) + count * client) % CLASSES)


def soft(labels: Tensor) -> Tensor:
    """Labels as weights of classes, float32 (N, classes)."""
    return nn.functional.one_hot(labels, CLASSES).to(torch.float32)


def _encoded(scene: Scene, private: Batch) -> tuple[Batch, Tensor, Tensor]:
    """Each image mixed with the next one of its batch, where the scene mixes."""
    count = len(private)
    indices = torch.stack([torch.arange(count), (torch.arange(count) + 1) % count], dim=1)
    weights = torch.linspace(0.55, 0.7, count)
    coefficients = torch.stack([weights, 1 - weights], dim=1)
    if not scene.mixes:
        return private, indices, coefficients
    first, second = coefficients[:, 0], coefficients[:, 1]
    pair = private.images[indices]
    mixed = first.view(-1, 1, 1, 1) * pair[:, 0] + second.view(-1, 1, 1, 1) * pair[:, 1]
    labels = soft(private.labels)[indices]
    return Batch(mixed, first[:, None] * labels[:, 0] + second[:, None] * labels[:, 1]), indices, coefficients


def _train(
    scene: Scene, model: nn.Module, parameters: Tensors, batch: Batch
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The update of a round (of fedsgd, the gradient), and the statistics of each pass."""
    now = {name: value.clone() for name, value in parameters.items()}
    gradients: dict[str, Tensor] = {}
    with batchnorm.recording(model) as passes, torch.enable_grad():
        for step in range(scene.steps):
            part = slice(step * scene.batch, (step + 1) * scene.batch)
            weights = {name: value.requires_grad_() for name, value in now.items()}
            logits = functional_call(model, weights, (scene.normalisation(batch.images[part]),))
            loss = training_loss(model, logits, batch.labels[part])
            found = torch.autograd.grad(loss, list(weights.values()))
            gradients = dict(zip(weights, found, strict=True))
            now = {name: (value - RATE * gradients[name]).detach() for name, value in weights.items()}
    if scene.algorithm == "fedsgd":
        return gradients, passes
    return {name: parameters[name] - value for name, value in now.items()}, passes


_NORM = {"model": "tiny_batchnorm", "settings": TinyBatchNorm()}
_CONV = {"model": "convnet6", "settings": ConvNet6(width=4, hidden=16), "shape": (3, 8, 8)}
_CHAIN = {"model": "cnn6", "settings": CNN6(channels=(12, 12, 12, 12, 16, 16))}
_POST = {"model": "vit", "settings": ViT(patch=4, dim=24, heads=4, norm="post", first_skip=False)}

MLP_ONE = Scene("one image, mlp", batch=1)
MLP_THREE = Scene("three images, mlp")
CONV_THREE = Scene("three images in colour, convnet6", **_CONV)  # type: ignore[arg-type]
NORM_SHARED = Scene("three images, BatchNorm, running statistics shared", **_NORM)  # type: ignore[arg-type]
NORM_FROZEN = Scene("three images, BatchNorm, frozen", policy="freeze", **_NORM)  # type: ignore[arg-type]
NORM_GROUPED = Scene("three images, GroupNorm", policy="group_norm", **_NORM)  # type: ignore[arg-type]

GRADIENTS = (
    MLP_ONE,
    MLP_THREE,
    CONV_THREE,
    Scene("one image, cnn6", batch=1, **_CHAIN),  # type: ignore[arg-type]
    Scene("one image, vit", batch=1, **_POST),  # type: ignore[arg-type]
    Scene("two local steps of two images, mlp", batch=2, algorithm="fedavg", steps=2),
    Scene("the sum of two clients with two images each, mlp", batch=2, clients=(0, 1)),
    Scene("mixtures of images over two rounds, mlp", rounds=2, mixes=True),
    NORM_SHARED,
    Scene("one image, BatchNorm, batch statistics shared", batch=1, policy="share_batch", **_NORM),  # type: ignore[arg-type]
    Scene("three images, BatchNorm, statistics kept local", policy="local", **_NORM),  # type: ignore[arg-type]
    Scene("mixtures of images over two rounds, BatchNorm", rounds=2, mixes=True, **_NORM),  # type: ignore[arg-type]
)
"""What an adversary is tried on."""

DEFENDED = (MLP_ONE, MLP_THREE, CONV_THREE, NORM_SHARED, NORM_FROZEN, NORM_GROUPED)
"""What a defense is tried in."""
