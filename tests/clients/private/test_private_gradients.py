"""The sum of clipped per-example gradients, and the private gradient made of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor, nn

from fedsim import batchnorm
from fedsim.clients.defenses.base import Plan
from fedsim.clients.private.dp_sgd import DPSGD
from fedsim.clients.private.gradients import clipped_sum
from fedsim.models.building import build
from fedsim.models.catalog import MLP, ConvNet6, LeNet, ResNet18, ViT
from fedsim.models.loss import cross_entropy, training_loss
from fedsim.protocol import Batch

SHAPE = (1, 8, 8)
PLAN = Plan(size=100, batch_size=20, steps=1, rounds=5, shape=SHAPE, classes=4)
MODELS = {
    "mlp": MLP(hidden=(6,)),
    "lenet": LeNet(),
    "convnet6": ConvNet6(width=4),
    "vit": ViT(patch=4, dim=8, heads=2, depth=1),
    "resnet18": ResNet18(),
}


def network(name: str = "mlp", policy: str = "group_norm") -> nn.Module:
    shape = (3, 8, 8) if name == "resnet18" else SHAPE
    model = batchnorm.apply_policy(build(MODELS[name], shape, 4, seed=1), policy)
    batchnorm.training_mode(model, policy)
    return model


def images(count: int, channels: int = 1, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(count, channels, 8, 8, generator=rng), torch.randint(4, (count,), generator=rng))


def loss_of(model: nn.Module) -> Callable[[Batch], Tensor]:
    return lambda batch: training_loss(model, model(batch.images), batch.labels)


def plain(model: nn.Module, batch: Batch) -> list[Tensor]:
    return list(torch.autograd.grad(loss_of(model)(batch), list(model.parameters())))


def by_hand(model: nn.Module, batch: Batch, limit: float) -> list[Tensor]:
    """One image after the other, each gradient clipped over all its parameters together."""
    total = [torch.zeros_like(value) for value in model.parameters()]
    for row in range(len(batch)):
        gradient = plain(model, Batch(batch.images[row : row + 1], batch.labels[row : row + 1]))
        norm = math.sqrt(sum(float(value.double().square().sum()) for value in gradient))
        for sum_, value in zip(total, gradient, strict=True):
            sum_ += value * min(1.0, limit / norm)
    return total


def made(defense: DPSGD, model: nn.Module, batch: Batch, plan: Plan = PLAN, seed: int = 0) -> list[Tensor]:
    return defense.gradient(model, batch, plan, loss_of(model), torch.Generator().manual_seed(seed))


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in tensors])


@pytest.mark.parametrize("name", MODELS)
def test_without_noise_and_clipping_it_is_the_plain_gradient_times_drawn_by_expected(name: str) -> None:
    model, batch = network(name), images(7, channels=3 if name == "resnet18" else 1)
    found = made(DPSGD(noise_multiplier=0.0, max_grad_norm=1e6), model, batch)
    for private, gradient in zip(found, plain(model, batch), strict=True):
        torch.testing.assert_close(private, gradient * 7 / 20, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "lenet", "vit"])
def test_the_sum_is_that_of_a_loop_over_clipped_gradients(name: str) -> None:
    model, batch = network(name), images(9)
    norms = [
        float(flat(plain(model, Batch(batch.images[i : i + 1], batch.labels[i : i + 1]))).norm()) for i in range(9)
    ]
    limit = sorted(norms)[4]  # clips some and leaves others
    found = clipped_sum(model, batch, limit, loss_of(model))
    for one, other in zip(found, by_hand(model, batch, limit), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    alone = flat(clipped_sum(model, Batch(batch.images[:1], batch.labels[:1]), limit / 3, loss_of(model)))
    assert float(alone.norm()) == pytest.approx(min(limit / 3, norms[0]), rel=1e-4)


def test_one_image_more_moves_the_sum_by_the_limit_at_most() -> None:
    model, batch = network(), images(9)
    fewer = Batch(batch.images[:8], batch.labels[:8])
    apart = flat(clipped_sum(model, batch, 0.1, loss_of(model))) - flat(clipped_sum(model, fewer, 0.1, loss_of(model)))
    assert float(apart.norm()) <= 0.1 * (1 + 1e-4)


@pytest.mark.parametrize("chunk", [1, 4, 9, 50])
def test_accumulation_changes_nothing(chunk: int) -> None:
    model, batch = network("lenet"), images(9)
    whole = made(DPSGD(max_grad_norm=0.5), model, batch)
    parts = made(DPSGD(max_grad_norm=0.5, physical_batch=chunk), model, batch)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_noise_has_the_variance_that_is_accounted_for() -> None:
    model = network("lenet")
    clean = flat(made(DPSGD(noise_multiplier=0.0, max_grad_norm=0.5), model, images(5)))
    noisy = flat(made(DPSGD(noise_multiplier=1.5, max_grad_norm=0.5), model, images(5)))
    scaled = (noisy - clean).double() / (1.5 * 0.5 / PLAN.batch_size)
    low, high = chi2.ppf([1e-6, 1 - 1e-6], df=len(scaled))
    assert low < float(scaled.square().sum()) < high
    assert abs(float(scaled.mean())) < 5 / math.sqrt(len(scaled))


def test_no_two_parameters_share_their_noise() -> None:
    """The same draw for every row of a layer hides nothing of their differences."""
    model = build(MLP(hidden=(64, 64)), SHAPE, 4, seed=1)
    noise = made(DPSGD(), model, images(0))
    first, second = (value for value in noise if value.shape == (64, 64))
    assert abs(float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])) < 0.1
    rows = torch.corrcoef(first) - torch.eye(64)
    assert float(rows.abs().max()) < 0.7
    assert torch.equal(flat(noise), flat(made(DPSGD(), model, images(0))))
    assert not torch.equal(flat(noise), flat(made(DPSGD(), model, images(0), seed=1)))


def test_an_empty_batch_is_pure_noise_without_a_forward_pass() -> None:
    def refuse(_: Batch) -> Tensor:
        raise AssertionError("there is nothing to pass through the model")

    rng = torch.Generator().manual_seed(0)
    model = network()
    found = DPSGD(noise_multiplier=2.0).gradient(model, images(0), PLAN, refuse, rng)
    again = torch.Generator().manual_seed(0)
    for value in found:
        torch.testing.assert_close(value, torch.randn(value.shape, generator=again) * 2.0 / 20)


def test_an_image_without_a_finite_gradient_adds_nothing() -> None:
    model, batch = network(), images(4)
    batch.images[2] = float("nan")
    kept = torch.tensor([0, 1, 3])
    found = clipped_sum(model, batch, 0.1, loss_of(model))
    expected = by_hand(model, Batch(batch.images[kept], batch.labels[kept]), 0.1)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "policy"), [("mlp", "group_norm"), ("vit", "group_norm"), ("resnet18", "freeze")])
def test_the_model_is_left_as_it_was_found(name: str, policy: str) -> None:
    model, batch = network(name, policy), images(2, channels=3 if name == "resnet18" else 1)
    names = [name for name, _ in model.named_modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    before, kinds = flat(plain(model, batch)), [sorted(module.__dict__) for module in model.modules()]
    for _ in range(2):  # Opacus refuses hooks that are there already
        made(DPSGD(), model, batch)
    assert [name for name, _ in model.named_modules()] == names
    assert [module.training for module in model.modules()] == modes
    assert [sorted(module.__dict__) for module in model.modules()] == kinds
    assert all(not module._forward_hooks and not module._backward_hooks for module in model.modules())
    assert all(not value.__dict__ and value.grad is None for value in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(flat(plain(model, batch)), before)


def test_the_model_is_left_as_it_was_found_after_an_error() -> None:
    model = network()
    with pytest.raises(ZeroDivisionError):
        clipped_sum(model, images(2), 1.0, lambda batch: model(batch.images).sum() / (1 // 0))
    assert all(not module._forward_hooks for module in model.modules())
    made(DPSGD(), model, images(2))


def test_frozen_batchnorm_is_a_fixed_scaling() -> None:
    model, batch = network("resnet18", "freeze"), images(3, channels=3)
    for layer in batchnorm.layers(model).values():
        layer.running_mean.uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]
    found = clipped_sum(model, batch, 0.5, loss_of(model))
    for one, other in zip(found, by_hand(model, batch, 0.5), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("policy", ["share_batch", "share_running", "local"])
def test_batchnorm_is_refused_where_it_mixes_images(policy: str) -> None:
    reason = DPSGD().objection_to(network("resnet18", policy), policy)
    assert reason is not None and f'"{policy}"' in reason and "group_norm" in reason
    assert DPSGD().objection_to(network("mlp"), policy) is None


@pytest.mark.parametrize("policy", ["group_norm", "freeze"])
def test_batchnorm_that_mixes_nothing_is_allowed(policy: str) -> None:
    model = network("resnet18", policy)
    assert DPSGD().objection_to(model, policy) is None
    assert DPSGD().objection_to_plan(model, replace(PLAN, shape=(3, 8, 8))) is None


class Mean(nn.Module):
    """Subtracts the mean over the batch, unnoticed by any list of layers."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Borrowing(nn.Module):
    """Uses a layer's weight without the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.first(x.flatten(1)), self.second.weight)


def test_what_cannot_be_trained_privately_is_said_with_the_reason() -> None:
    def said(model: nn.Module) -> str:
        return DPSGD().objection_to(model, "freeze") or DPSGD().objection_to_plan(model, PLAN) or ""

    head = [nn.Flatten(), nn.Linear(64, 4)]
    assert said(nn.Sequential(*head)) == ""
    assert said(nn.Sequential(nn.Dropout(0.5), *head)) == ""
    assert "depends on the others" in said(nn.Sequential(Mean(), *head))
    assert "in place" in said(nn.Sequential(*head, nn.ReLU(inplace=True)))
    assert "cannot be had" in said(Borrowing())
    assert "Opacus cannot train" in said(nn.Sequential(nn.Flatten(), nn.LSTM(64, 4)))


def test_a_mean_loss_is_what_is_expected() -> None:
    """The contract of `loss` that the per-example gradients rest on."""
    logits, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.arange(5) % 4
    parts = torch.stack([cross_entropy(logits[i : i + 1], labels[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(cross_entropy(logits, labels), parts.mean())
