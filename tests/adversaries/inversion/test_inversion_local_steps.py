"""Unrolled local training: what a real client computes, and a function that can be differentiated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.adversaries.inversion.calculus import RECORDED, TRANSFORMED, Calculus
from fedsim.adversaries.inversion.local_steps import LocalSteps, Weights, one_gradient, unrolled
from fedsim.clients.training import train
from fedsim.data.dataset import Normalisation
from fedsim.experiment import LocalTraining
from fedsim.models.loss import cross_entropy
from fedsim.protocol import Batch

PLAIN = Normalisation((0.0,), (1.0,))
LABELS = torch.tensor([0, 1, 2, 1, 0])
CASES = {
    "one step": LocalSteps((5,), 1, 0.5),
    "several steps, a smaller last batch": LocalSteps((2, 2, 1), 3, 0.5),
    "two epochs": LocalSteps((2, 2, 1), 6, 0.5),
    "stopped within the second epoch": LocalSteps((2, 2, 1), 4, 0.5),
    "momentum": LocalSteps((2, 2, 1), 6, 0.5, momentum=0.9),
    "weight decay": LocalSteps((2, 2, 1), 6, 0.5, weight_decay=0.1),
    "all of it": LocalSteps((2, 2, 1), 5, 0.5, momentum=0.9, weight_decay=0.1, separate=True),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()


def drawn(count: int) -> Tensor:
    return torch.rand(count, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


MODEL = network()
BROADCAST = {name: value.detach().clone() for name, value in MODEL.named_parameters()}


def loss(weights: Weights, images: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    value = cross_entropy(functional_call(MODEL, weights, (images,)), labels)
    return value, [value, images.mean()]


def by_a_client(images: Tensor, local: LocalSteps) -> dict[str, Tensor]:
    """The update of fedsim's own client, given batches that are cut by hand, over its rate and number of steps."""
    batches = []
    for step in range(local.steps):
        epoch, place = divmod(step, len(local.batches))
        first = sum(local.batches[:place])
        where = slice(first, first + local.batches[place])
        own = images[epoch * len(LABELS) :] if local.separate else images
        batches.append(Batch(own[where], LABELS[where]))
    settings = LocalTraining(learning_rate=local.rate, momentum=local.momentum, weight_decay=local.weight_decay)
    update = train(network(), BROADCAST, batches, settings, "fedavg", "local", PLAIN).update.tensors
    return {name: value / (local.rate * local.steps) for name, value in update.items()}


@pytest.mark.parametrize("case", CASES)
def test_the_mean_step_is_what_a_client_sends(case: str) -> None:
    local = CASES[case]
    images = drawn(5 * local.epochs if local.separate else 5)
    update, _ = unrolled(loss, BROADCAST, images, LABELS, local)
    torch.testing.assert_close(dict(zip(BROADCAST, update, strict=True)), by_a_client(images, local))


@pytest.mark.parametrize("calculus", [RECORDED, TRANSFORMED])
@pytest.mark.parametrize("case", CASES)
def test_the_mean_step_differentiates_right(case: str, calculus: Calculus) -> None:
    local = CASES[case]
    images = drawn(5 * local.epochs if local.separate else 5)
    rng = torch.Generator().manual_seed(2)
    along = [torch.randn(value.shape, generator=rng, dtype=torch.float64) for value in BROADCAST.values()]

    def shown(guess: Weights) -> tuple[list[Tensor], Tensor]:
        update, _ = unrolled(loss, BROADCAST, guess["images"], LABELS, local, calculus)
        return update, images.sum() * 0

    def measured(x: Tensor) -> Tensor:
        update, _ = unrolled(loss, BROADCAST, x, LABELS, local, calculus)
        return torch.stack([(u * a).sum() for u, a in zip(update, along, strict=True)]).sum()

    (_, prior), pull = calculus.pullback(shown, {"images": images})
    slope = pull(along, torch.ones_like(prior))["images"]
    for place in [(0, 0, 0, 0), (2, 0, 1, 3), (len(images) - 2, 0, 3, 3)]:
        ahead, behind = images.clone(), images.clone()
        ahead[place] += 1e-5
        behind[place] -= 1e-5
        difference = (measured(ahead) - measured(behind)).item() / 2e-5
        assert slope[place].item() == pytest.approx(difference, rel=1e-4, abs=1e-8)


def test_portions_stand_in_their_order() -> None:
    images, labels = torch.arange(10.0), torch.arange(5)
    local = LocalSteps((2, 2, 1), 4, 0.1)
    whole = [[0, 1], [2, 3], [4], [0, 1]]
    assert [own.tolist() for own, _ in local.portions(images[:5], labels)] == whole
    assert [of.tolist() for _, of in local.portions(images[:5], labels)] == whole
    separate = replace(local, separate=True)
    assert [own.tolist() for own, _ in separate.portions(images, labels)] == [[0, 1], [2, 3], [4], [5, 6]]
    assert [of.tolist() for _, of in separate.portions(images, labels)] == whole
    assert local.passed == sum(map(len, whole))


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (3, 1), (4, 2), (6, 2), (7, 3)])
def test_epochs_are_those_that_were_begun(steps: int, epochs: int) -> None:
    assert LocalSteps((2, 2, 1), steps, 0.1).epochs == epochs


def test_what_else_was_wanted_is_its_mean_over_the_steps() -> None:
    images = drawn(5)
    _, (losses, brightness) = unrolled(loss, BROADCAST, images, LABELS, LocalSteps((2, 2, 1), 3, 0.5))
    assert brightness.item() == pytest.approx(sum(images[s].mean().item() for s in ([0, 1], [2, 3], [4])) / 3)
    assert losses.shape == ()


def test_one_gradient_is_autograds() -> None:
    images = drawn(5)
    gradient, (value, _) = one_gradient(loss, BROADCAST, images, LABELS)
    own = [value.clone().requires_grad_() for value in BROADCAST.values()]
    expected = cross_entropy(functional_call(MODEL, dict(zip(BROADCAST, own, strict=True)), (images,)), LABELS)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, list(torch.autograd.grad(expected, own)))


def test_a_small_rate_loses_no_digits() -> None:
    """Broadcast minus trained, in float32, would be wrong in every digit here."""
    images, broadcast = drawn(5).float(), {name: value.float() for name, value in BROADCAST.items()}
    local = LocalSteps((2, 2, 1), 3, 1e-7)
    with torch.no_grad():
        update, _ = unrolled(loss, broadcast, images, LABELS, local)
    exact, _ = unrolled(loss, BROADCAST, drawn(5), LABELS, local)
    for one, other in zip(update, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-12)
