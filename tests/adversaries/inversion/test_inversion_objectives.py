"""Every distance of gradients: its value by hand, and its derivative by autograd and by finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedsim.adversaries.inversion import objectives
from fedsim.adversaries.inversion.objectives import Sought

NAMES = ["cosine", "angular", "squared_l2", "l1", "tag"]
SCHEMES = ["equal", "linear", "exponential"]
SCALE = 0.3

# By hand: two tensors, of which the second weighs half.
GUESS = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
TARGET = [torch.tensor([2.0, -1.0]), torch.tensor([1.0])]
WEIGHTS = [1.0, 0.5]
# <g, t> = 1 * 2 - 2 * 1 + 0.5 * 3 * 1 = 1.5, |g|^2 = 1 + 4 + 0.5 * 9 = 9.5, |t|^2 = 4 + 1 + 0.5 * 1 = 5.5
SIMILARITY = 1.5 / math.sqrt(9.5 * 5.5)
BY_HAND = {
    "cosine": 1 - SIMILARITY,
    "angular": math.acos(SIMILARITY) / math.pi,
    "squared_l2": 1 + 9 + 0.5 * 4,
    "l1": 1 + 3 + 0.5 * 2,
    "tag": 14 + SCALE * 5,  # its squares are not weighted
}
# With the second entry masked: <g, t> = 2 + 1.5, |g|^2 = 1 + 4.5, |t|^2 = 4 + 0.5
MASKS = [torch.tensor([1.0, 0.0]), torch.tensor([1.0])]
MASKED_SIMILARITY = 3.5 / math.sqrt(5.5 * 4.5)
MASKED = {
    "cosine": 1 - MASKED_SIMILARITY,
    "angular": math.acos(MASKED_SIMILARITY) / math.pi,
    "squared_l2": 1 + 0.5 * 4,
    "l1": 1 + 0.5 * 2,
    "tag": 5 + SCALE * 2,
}


def tensors(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=dtype) for shape in [(4, 3, 3, 3), (5, 7), (5,)]]


def plainly(name: str, g: list[Tensor], t: list[Tensor], weights: list[float], masks: list[Tensor] | None) -> Tensor:
    """The formula over one long vector, in which every entry has the weight of its layer."""
    ones = masks or [torch.ones_like(value) for value in g]
    flat = [torch.cat([value.reshape(-1) for value in values]) for values in (g, t)]
    weight = torch.cat([(w * one).expand_as(t_).reshape(-1) for w, one, t_ in zip(weights, ones, t, strict=True)])
    a, b = flat
    cosine = (weight * a * b).sum() / ((weight * a * a).sum().sqrt() * (weight * b * b).sum().sqrt())
    square, size = (weight * (a - b) ** 2).sum(), (weight * (a - b).abs()).sum()
    counts = torch.cat([one.expand_as(value).reshape(-1) for one, value in zip(ones, t, strict=True)])
    return {
        "cosine": 1 - cosine,
        "angular": cosine.acos() / math.pi,
        "squared_l2": square,
        "l1": size,
        "tag": (counts * (a - b) ** 2).sum() + SCALE * size,
    }[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_value_by_hand(name: str) -> None:
    objective = objectives.named(name, SCALE)
    assert objective(GUESS, Sought(TARGET, WEIGHTS))[0].item() == pytest.approx(BY_HAND[name], abs=1e-6)
    assert objective(GUESS, Sought(TARGET, WEIGHTS, MASKS))[0].item() == pytest.approx(MASKED[name], abs=1e-6)


def test_the_derivatives_by_hand() -> None:
    g, t = [torch.tensor([1.0, 2.0])], [torch.tensor([2.0, -1.0])]
    one = [2.0]
    # t is orthogonal to g: d cosine / dg = t / (|g| |t|) = t / 5, and the arccos of 0 has the slope -1.
    torch.testing.assert_close(objectives.cosine(g, Sought(t, one))[1][0], torch.tensor([-0.4, 0.2]))
    torch.testing.assert_close(objectives.angular(g, Sought(t, one))[1][0], torch.tensor([-0.4, 0.2]) / math.pi)
    torch.testing.assert_close(objectives.squared_l2(g, Sought(t, one))[1][0], torch.tensor([-4.0, 12.0]))
    torch.testing.assert_close(objectives.l1(g, Sought(t, one))[1][0], torch.tensor([-2.0, 2.0]))
    torch.testing.assert_close(objectives.tag(0.5)(g, Sought(t, one))[1][0], torch.tensor([-3.0, 7.0]))


@pytest.mark.parametrize("masked", ["", "hard", "soft", "scalar"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NAMES)
def test_the_derivative_is_autograds_of_the_plain_formula(name: str, scheme: str, masked: str) -> None:
    guess, target = [g.requires_grad_() for g in tensors(1)], tensors(0)
    weights = objectives.layer_weights(scheme, 3)
    masks = {
        "": None,
        "hard": [(t > 0).to(t.dtype) for t in target],
        "soft": [t.sigmoid() for t in target],
        "scalar": [torch.tensor(share, dtype=torch.float64) for share in (0.5, 0.0, 2.0)],
    }[masked]
    plain = plainly(name, guess, target, weights, masks)
    expected = torch.autograd.grad(plain, guess)
    value, derivative = objectives.named(name, SCALE)([g.detach() for g in guess], Sought(target, weights, masks))
    torch.testing.assert_close(value, plain.detach())
    torch.testing.assert_close(list(derivative), list(expected))


@pytest.mark.parametrize("name", NAMES)
def test_the_derivative_by_finite_differences(name: str) -> None:
    guess, target = tensors(1), tensors(0)
    weights, masks = objectives.layer_weights("linear", 3), [(t > -0.5).double() for t in target]
    objective = objectives.named(name, SCALE)
    along = tensors(2)
    _, derivative = objective(guess, Sought(target, weights, masks))
    ahead, behind = (
        objective([g + h * a for g, a in zip(guess, along, strict=True)], Sought(target, weights, masks))[0]
        for h in (1e-6, -1e-6)
    )
    slope = sum((d * a).sum().item() for d, a in zip(derivative, along, strict=True))
    assert slope == pytest.approx((ahead - behind).item() / 2e-6, rel=1e-6)


@pytest.mark.parametrize("masks", [None, MASKS])
@pytest.mark.parametrize("name", NAMES)
def test_the_length_of_the_target_may_be_computed_before(name: str, masks: list[Tensor] | None) -> None:
    square = objectives.squared_length(TARGET, WEIGHTS, masks)
    assert square.item() == pytest.approx(5.5 if masks is None else 4.5)
    objective = objectives.named(name, SCALE)
    once, always = (objective(GUESS, Sought(TARGET, WEIGHTS, masks, given)) for given in (square, None))
    torch.testing.assert_close(once, always)


def test_masked_entries_have_no_slope() -> None:
    for name in NAMES:
        assert objectives.named(name, SCALE)(GUESS, Sought(TARGET, WEIGHTS, MASKS))[1][0][1] == 0


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [("equal", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25]), ("exponential", [1, 0.367879, 0.135335, 0.049787])],
)
def test_layers_weigh_less_from_the_input_on(scheme: str, expected: list[float]) -> None:
    assert objectives.layer_weights(scheme, 4) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["cosine", "angular"])
def test_angles_ignore_the_scale_of_either_gradient(name: str) -> None:
    target, guess = tensors(0), tensors(1)
    objective = objectives.named(name, SCALE)
    value = objective(guess, Sought(target, [1.0] * 3))[0]
    scaled = objective([0.01 * g for g in guess], Sought([7 * t for t in target], [1.0] * 3))[0]
    torch.testing.assert_close(scaled, value)


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_match_is_worth_nothing(name: str) -> None:
    target = tensors(0)
    value, derivative = objectives.named(name, SCALE)(target, Sought(target, [1.0] * 3))
    # arccos is cut off where its slope would have no bound, at an angle of sqrt(2e-7) / pi.
    assert value.item() == pytest.approx(0, abs=1.5e-4 if name == "angular" else 1e-12)
    assert all(torch.isfinite(d).all() for d in derivative)


def test_an_opposite_gradient_is_the_worst() -> None:
    target = tensors(0)
    opposite = [-t for t in target]
    assert objectives.cosine(opposite, Sought(target, [1.0] * 3))[0].item() == pytest.approx(2)
    assert objectives.angular(opposite, Sought(target, [1.0] * 3))[0].item() == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("name", ["cosine", "angular"])
def test_angles_are_precise_over_millions_of_entries(name: str) -> None:
    """Summed one after the other in float32, |g| is off by 7e-4 and an exact match would not be worth 0."""
    g = torch.randn(1024, 6272, generator=torch.Generator().manual_seed(0))
    value, derivative = objectives.named(name, SCALE)([2 * g], Sought([g], [1.0]))
    assert value.item() == pytest.approx(0, abs=1e-6 if name == "cosine" else 2e-4)
    if name == "cosine":
        assert derivative[0].norm().item() < 1e-6


def test_cosine_in_float32_over_millions_of_entries_is_that_in_float64() -> None:
    rng = torch.Generator().manual_seed(0)
    g, t = (torch.randn(1024, 3000, generator=rng) for _ in range(2))
    near = t + 0.01 * g
    value, derivative = objectives.cosine([near], Sought([t], [1.0]))
    exact, slope = objectives.cosine([near.double()], Sought([t.double()], [1.0]))
    assert exact.item() == pytest.approx(5e-5, rel=0.1)
    assert value.item() == pytest.approx(exact.item(), abs=3e-7)
    assert (derivative[0] - slope[0]).norm() < 1e-3 * slope[0].norm()


@pytest.mark.parametrize("name", NAMES)
def test_objectives_can_be_vmapped(name: str) -> None:
    objective: Callable[..., tuple[Tensor, list[Tensor]]] = objectives.named(name, SCALE)
    guesses, target = [tensors(1), tensors(2)], tensors(0)
    stacked = [torch.stack(pair) for pair in zip(*guesses, strict=True)]
    values, derivatives = torch.vmap(lambda g: objective(g, Sought(target, [1.0, 0.5, 0.2])))(stacked)
    for place, guess in enumerate(guesses):
        value, derivative = objective(guess, Sought(target, [1.0, 0.5, 0.2]))
        torch.testing.assert_close(values[place], value)
        torch.testing.assert_close([d[place] for d in derivatives], list(derivative))


def test_the_layout_in_memory_makes_no_difference() -> None:
    target, guess = tensors(0), tensors(1)
    value, derivative = objectives.cosine(guess, Sought(target, [1.0] * 3))
    laid_out = [g.contiguous(memory_format=torch.channels_last) if g.dim() == 4 else g for g in guess]
    again, other = objectives.cosine(laid_out, Sought(target, [1.0] * 3))
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(other, derivative)
