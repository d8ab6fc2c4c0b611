"""What an aware attack does to its guess's gradient: values by hand, pullbacks by finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fedsim.adversaries.inversion import maps, objectives
from fedsim.adversaries.inversion.objectives import Sought

SHAPES = [(4, 3, 2, 2), (5, 7), (5,)]


def tensors(seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in SHAPES]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


TARGET = tensors(0)
CASES: dict[str, tuple[Any, list[Tensor]]] = {
    "scaled": (maps.scaled, [(t > 0).double() * 1.5 for t in TARGET]),
    "clipped": (maps.clipped, [scalar(3.0)]),
    "clipped, but short": (maps.clipped, [scalar(100.0)]),
    "clipped each": (maps.clipped_each, [scalar(4.0)]),  # the first two are longer, the last is not
    "signs": (maps.smooth_signs, []),
    "signs with a size": (maps.mean_sized_signs, []),
    "cells": (maps.beyond_cells, [scalar(0.4), scalar(0.8), scalar(torch.inf)]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_pullback_by_finite_differences(name: str) -> None:
    one, given = CASES[name]
    gradient, along, direction = tensors(1), tensors(2), tensors(3)
    _, back = one(gradient, given, TARGET)
    ahead, behind = (
        one([g + h * a for g, a in zip(gradient, along, strict=True)], given, TARGET)[0] for h in (1e-6, -1e-6)
    )
    moved = [(a - b) / 2e-6 for a, b in zip(ahead, behind, strict=True)]
    expected = sum((m * d).sum().item() for m, d in zip(moved, direction, strict=True))
    found = sum((p * a).sum().item() for p, a in zip(back(direction), along, strict=True))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_traced_and_vmapped_it_is_the_same(name: str) -> None:
    one, given = CASES[name]

    def both(gradient: list[Tensor], direction: list[Tensor], given: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        value, back = one(gradient, given, TARGET)
        return value, back(direction)

    first, second, direction = tensors(1), tensors(2), tensors(3)
    traced = make_fx(both)(first, direction, given)
    torch.testing.assert_close(traced(second, direction, given), both(second, direction, given))
    # The device `meta` has no values, so that a map that looked at one would fail.
    nowhere = [[value.to("meta") for value in values] for values in (first, direction, given)]
    target = [value.to("meta") for value in TARGET]
    assert all(value.is_meta for value in one(nowhere[0], nowhere[2], target)[1](nowhere[1]))
    stacked = [torch.stack(pair) for pair in zip(first, second, strict=True)]
    # What the map is told differs between victims.
    told = [torch.stack([value, 0.5 * value]) for value in given]
    together = torch.vmap(both, in_dims=(0, None, 0 if told else None))(stacked, direction, told)
    for number, (gradient, factor) in enumerate(((first, 1.0), (second, 0.5))):
        alone = both(gradient, direction, [factor * value for value in given])
        torch.testing.assert_close(tuple([x[number] for x in part] for part in together), alone)


def test_clipping_by_hand() -> None:
    g = [torch.tensor([3.0]), torch.tensor([4.0, 0.0])]
    value, back = maps.clipped(g, [torch.tensor(2.5)], g)
    torch.testing.assert_close(value, [torch.tensor([1.5]), torch.tensor([2.0, 0.0])])
    # Along the gradient nothing moves; across it, by the factor.
    assert all(b.abs().max() < 1e-6 for b in back(g))
    torch.testing.assert_close(back([torch.tensor([0.0]), torch.tensor([0.0, 1.0])])[1], torch.tensor([0.0, 0.5]))
    each, _ = maps.clipped_each(g, [torch.tensor(3.5)], g)
    torch.testing.assert_close(each, [torch.tensor([3.0]), torch.tensor([3.5, 0.0])])


def test_signs_by_hand() -> None:
    g = [torch.tensor([1.0, -3.0, 0.0, 4.0])]  # the mean of |g| is 2, and a tenth of it 0.2
    signs, _ = maps.smooth_signs(g, [], g)
    torch.testing.assert_close(signs[0], torch.tensor([1 / 1.2, -3 / 3.2, 0.0, 4 / 4.2]))
    sized, _ = maps.mean_sized_signs(g, [], g)
    torch.testing.assert_close(sized[0], 2 * signs[0])
    torch.testing.assert_close(maps.smooth_signs([1000 * g[0]], [], g)[0], signs)


def test_an_empty_gradient_has_finite_signs_and_clippings() -> None:
    zero = [torch.zeros(3), torch.zeros(2, 2)]
    for one, given in ((maps.smooth_signs, []), (maps.mean_sized_signs, []), (maps.clipped_each, [torch.tensor(1.0)])):
        value, back = one(zero, given, zero)
        for tensor in (*value, *back([torch.ones(3), torch.ones(2, 2)])):
            assert torch.isfinite(tensor).all()


def test_cells_by_hand() -> None:
    t, g = [torch.tensor([1.0, 1.0, 1.0, 0.0])], [torch.tensor([1.2, 1.7, 0.0, -0.1])]
    value, back = maps.beyond_cells(g, [torch.tensor(0.25)], t)
    torch.testing.assert_close(value[0], torch.tensor([1.0, 1.45, 0.25, 0.0]))
    assert back([torch.ones(4)])[0].tolist() == [0, 1, 1, 0]


def test_an_objective_through_maps_has_the_slope_of_the_whole() -> None:
    """In their order: the mask comes before the clipping, whose length is without what is masked."""
    mask = [(t > 0).double() for t in TARGET]
    chain, given = [maps.scaled, maps.clipped], [mask, [scalar(3.0)]]
    guess = [g.requires_grad_() for g in tensors(1)]
    sought = Sought(TARGET, [1.0, 0.5, 2.0])
    masked = [g * m for g, m in zip(guess, mask, strict=True)]
    norm = torch.cat([g.flatten() for g in masked]).norm()
    assert norm > 3
    plain = sum(w * (3 * g / norm - t).square().sum() for w, g, t in zip(sought.layers, masked, TARGET, strict=True))
    assert isinstance(plain, Tensor)
    expected = torch.autograd.grad(plain, guess)
    value, slope = maps.through(chain, given, objectives.squared_l2)([g.detach() for g in guess], sought)
    torch.testing.assert_close(value, plain.detach())
    torch.testing.assert_close(slope, list(expected))
    assert maps.through([], [], objectives.cosine) is objectives.cosine
