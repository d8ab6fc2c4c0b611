"""Local training of a model with a variational bottleneck."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from fedsim import seeding
from fedsim.clients.training import Trained, train
from fedsim.clients.workbench import Workbench
from fedsim.data.dataset import Normalisation
from fedsim.experiment import Experiment, LocalTraining
from fedsim.models import precode
from fedsim.models.building import build
from fedsim.models.catalog import MLP
from fedsim.models.loss import cross_entropy
from fedsim.protocol import Batch

NORMALISE = Normalisation((0.3,), (0.4,))
LOCAL = LocalTraining(batch_size=8, local_epochs=1, learning_rate=0.1)


def batches(count: int = 3) -> list[Batch]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[: 8 * count, None] / 16
    labels = torch.tensor(data.target[: 8 * count], dtype=torch.int64)
    return [Batch(*pair) for pair in zip(images.split(8), labels.split(8), strict=True)]


def model(beta: float = 1e-3) -> nn.Module:
    return build(MLP(hidden=(32,), bottleneck=16, bottleneck_beta=beta), (1, 8, 8), 10, seed=0)


def trained(network: nn.Module, steps: list[Batch], seed: int = 0, algorithm: Any = "fedavg", **local: Any) -> Trained:
    precode.seed(network, seeding.generator(seed, "bottleneck", 1, 0))
    broadcast = {name: value.detach().clone() for name, value in network.named_parameters()}
    return train(network, broadcast, steps, replace(LOCAL, **local), algorithm, "local", NORMALISE)


def test_a_seed_gives_the_same_update_and_another_seed_another() -> None:
    first, same, other = (trained(model(), batches(), seed).update.tensors for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.allclose(first["fc2.weight"], other["fc2.weight"])


def test_without_a_seeded_generator_nothing_is_trained() -> None:
    network = model()
    broadcast = {name: value.detach().clone() for name, value in network.named_parameters()}
    with pytest.raises(RuntimeError, match="no generator"):
        train(network, broadcast, batches(), LOCAL, "fedavg", "local", NORMALISE)


def test_the_gradient_sent_is_that_of_the_loss_with_its_penalty() -> None:
    (batch,) = batches(1)
    sent = trained(model(beta=0.5), [batch], algorithm="fedsgd")
    network = model(beta=0.5)
    precode.seed(network, seeding.generator(0, "bottleneck", 1, 0))
    logits = network(NORMALISE(batch.images))
    penalty = network.bottleneck.take_penalty()
    loss = cross_entropy(logits, batch.labels) + penalty
    assert sent.loss == pytest.approx(float(loss.detach()))
    expected = torch.autograd.grad(loss, list(network.parameters()))
    for (name, value), gradient in zip(sent.update.tensors.items(), expected, strict=True):
        torch.testing.assert_close(value, gradient, msg=name)


def test_it_learns() -> None:
    network, steps = model(), batches(12)
    losses = [trained(network, steps, seed=round_).loss for round_ in range(12)]
    assert losses[-1] < 0.4 < 2 < losses[0]
    network.eval()
    images, labels = (torch.cat([getattr(one, part) for one in steps]) for part in ("images", "labels"))
    assert float((network(NORMALISE(images)).argmax(1) == labels).float().mean()) > 0.9


def test_a_workbench_seeds_the_noise_of_each_client_and_round(small: Callable[..., Experiment]) -> None:
    bench = Workbench(small(model={"name": "mlp", "hidden": [16], "bottleneck": 8}))
    parameters = {name: value.detach().clone() for name, value in bench.model.named_parameters()}
    seeds, updates = [], []
    for client, round_ in ((0, 1), (1, 1), (0, 2), (0, 1)):
        updates.append(bench.train(client, round_, parameters, {})[0].update.tensors)
        seeds.append(bench.model.bottleneck.generator.initial_seed())
    assert len(set(seeds[:3])) == 3
    assert seeds[3] == seeds[0]
    assert all(torch.equal(value, updates[3][name]) for name, value in updates[0].items())
