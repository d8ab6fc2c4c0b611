from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim import progress
from fedsim.adversaries.inversion.engine import REPORT_EVERY, Problem, gradient_step, run_trial
from fedsim.adversaries.inversion.objectives import cosine
from fedsim.adversaries.inversion.optimisers import SignedAdam, three_drops
from fedsim.adversaries.inversion.priors import total_variation
from fedsim.models.loss import cross_entropy

LABELS = {"hard": torch.tensor([1, 2]), "soft": torch.tensor([[0.3, 0.7, 0.0], [0.0, 0.1, 0.9]])}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers).double()


def problem(labels: Tensor, tv: float = 0.1) -> Problem:
    model = network()
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    target = torch.autograd.grad(cross_entropy(model(x), labels), list(model.parameters()))
    bound = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    return Problem(
        model=model,
        parameters=parameters,
        labels=labels,
        objective=cosine(target),
        prior=(lambda guess: tv * total_variation(guess)) if tv else None,
        low=-bound,
        high=bound,
    )


def guess(seed: int = 5) -> Tensor:
    return torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", LABELS)
def test_the_step_is_the_derivative_by_finite_differences(kind: str) -> None:
    one, x = problem(LABELS[kind].double() if kind == "soft" else LABELS[kind]), guess()
    value, slope = gradient_step(one, x)
    for place in [(0, 0, 0, 0), (0, 0, 2, 1), (1, 0, 3, 3)]:
        ahead, behind = x.clone(), x.clone()
        ahead[place] += 1e-5
        behind[place] -= 1e-5
        measured = (gradient_step(one, ahead)[0] - gradient_step(one, behind)[0]) / 2e-5
        assert slope[place].item() == pytest.approx(measured.item(), rel=1e-4, abs=1e-8)
    assert value.item() > 0


def test_the_step_is_what_plain_double_backward_gives() -> None:
    one, x = problem(LABELS["hard"]), guess().requires_grad_()
    weights = {name: value.clone().requires_grad_() for name, value in one.parameters.items()}
    loss = cross_entropy(functional_call(one.model, weights, (x,)), one.labels)
    gradient = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    model = network()
    truth = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    target = torch.autograd.grad(cross_entropy(model(truth), one.labels), list(model.parameters()))
    a, b = (torch.cat([value.reshape(-1) for value in values]) for values in (gradient, target))
    whole = 1 - torch.cosine_similarity(a, b, dim=0) + 0.1 * total_variation(x)
    value, slope = gradient_step(one, x)
    torch.testing.assert_close(value, whole.detach())
    torch.testing.assert_close(slope, torch.autograd.grad(whole, x)[0])


def test_a_step_leaves_no_gradient_in_the_model() -> None:
    one = problem(LABELS["hard"])
    gradient_step(one, guess())
    assert all(value.grad is None for value in one.model.parameters())
    assert not any(value.requires_grad for value in one.parameters.values())


def test_a_trial_lowers_the_objective_reports_on_its_way_and_stays_in_the_box() -> None:
    one = problem(LABELS["hard"], tv=0)
    seen: list[tuple[int, int, str]] = []
    with progress.listening(lambda done, total, note: seen.append((done, total, note))):
        trial = run_trial(one, guess(), SignedAdam(0.1), 100, offset=100, total=200)
    assert trial.status == "done"
    assert trial.steps == 100
    assert trial.objective < 0.1 * trial.history[0][1]
    assert [step for step, _ in trial.history] == [*range(0, 100, REPORT_EVERY), 100]
    assert [done for done, _, _ in seen] == [100 + step for step in range(0, 100, REPORT_EVERY)]
    assert {total for _, total, _ in seen} == {200}
    assert trial.guess.abs().max() <= 2


def breaks_after(calls: int, objective: Callable[..., Any]) -> Callable[..., Any]:
    count = 0

    def broken(gradient: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        nonlocal count
        count += 1
        value, derivative = objective(gradient)
        if count > calls:
            return value * math.nan, [d * math.nan for d in derivative]
        return value, derivative

    return broken


@pytest.mark.parametrize("calls", [0, 1, REPORT_EVERY + 1, 100])
def test_nan_ends_a_trial_with_the_last_finite_guess(calls: int) -> None:
    one = problem(LABELS["hard"], tv=0)
    broken = dataclasses.replace(one, objective=breaks_after(calls, one.objective))
    trial = run_trial(broken, guess(), SignedAdam(0.1), 100, offset=0, total=100)
    assert trial.status == "nan"
    assert torch.isfinite(trial.guess).all()
    assert all(math.isfinite(value) for _, value in trial.history)


def test_adam_on_the_sign_is_torchs_adam_on_the_sign() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, generator=rng)
    theirs = x.clone().requires_grad_()
    adam, mine = torch.optim.Adam([theirs], lr=0.1), SignedAdam(0.1)
    for _ in range(20):
        gradient = torch.randn(3, 4, generator=rng)
        theirs.grad = gradient.sign()
        adam.step()
        x = mine.step(x, gradient, 1.0)
    torch.testing.assert_close(x, theirs.detach(), rtol=1e-4, atol=1e-5)


def test_the_first_step_has_the_step_size_in_every_pixel_whatever_the_gradient() -> None:
    gradient = torch.tensor([1e-6, -1e6, 0.0])
    assert SignedAdam(0.1).step(torch.zeros(3), gradient, 0.5).tolist() == pytest.approx([-0.05, 0.05, 0], abs=1e-6)


def test_the_step_size_drops_at_three_eighths_five_and_seven() -> None:
    factors = [three_drops(step, 800) for step in (0, 299, 300, 499, 500, 699, 700, 799)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


class ChannelNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize("norm", [ChannelNorm, lambda: nn.GroupNorm(2, 4), lambda: nn.InstanceNorm2d(4, affine=True)])
def test_the_step_is_right_through_every_kind_of_normalisation(norm: Callable[[], nn.Module]) -> None:
    """Forward-mode derivatives of some of these are differentiated wrongly by torch."""
    base = problem(LABELS["hard"])
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), norm(), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).double()
    target = [torch.randn_like(value) for value in model.parameters()]
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    one = dataclasses.replace(base, model=model, parameters=parameters, objective=cosine(target))
    x = guess()
    _, slope = gradient_step(one, x)
    for place in [(0, 0, 1, 1), (1, 0, 2, 3)]:
        ahead, behind = x.clone(), x.clone()
        ahead[place] += 1e-5
        behind[place] -= 1e-5
        measured = (gradient_step(one, ahead)[0] - gradient_step(one, behind)[0]) / 2e-5
        assert slope[place].item() == pytest.approx(measured.item(), rel=1e-4, abs=1e-8)


def test_a_parameter_that_the_loss_does_not_use_is_no_obstacle() -> None:
    base = problem(LABELS["hard"])
    model = network()
    model.register_parameter("idle", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    target = [torch.ones_like(value) for value in parameters.values()]
    _, slope = gradient_step(
        dataclasses.replace(base, model=model, parameters=parameters, objective=cosine(target)), guess()
    )
    assert torch.isfinite(slope).all()
    assert slope.abs().max() > 0
