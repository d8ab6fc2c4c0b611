"""The parts of decoding, each by itself."""

from __future__ import annotations

import pytest
import torch
from encoding import NORMALISE, private
from torch import Tensor

from fedsim.adversaries.decoding import coefficients, magnitudes, regression, signs, unmixing


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(rows: int, images: int, k: int = 3) -> tuple[Tensor, Tensor]:
    """Indices and coefficients."""
    rng = seeded()
    indices = torch.stack([torch.randperm(images, generator=rng)[:k] for _ in range(rows)])
    weights = torch.rand(rows, k, generator=rng) + 0.1
    return indices, weights / weights.sum(1, keepdim=True)


def test_the_matrix_by_hand() -> None:
    indices = torch.tensor([[7, 2], [-1, 7], [2, 2]])
    weights = torch.tensor([[0.6, 0.4], [0.3, 0.7], [0.5, 0.5]])
    matrix = regression.mixing_matrix(indices, weights, torch.tensor([2, 7]))
    assert torch.allclose(matrix, torch.tensor([[0.4, 0.6], [0.0, 0.7], [1.0, 0.0]]))


@pytest.mark.parametrize("hidden", [False, True])
def test_the_published_objective_is_what_its_steps_go_down(hidden: bool) -> None:
    """Against the formula, differentiated by autograd, with torch's own Adam."""
    matrix = regression.mixing_matrix(*mixture(30, 8), torch.arange(8))
    encodings = torch.randn(30, 5, generator=seeded(1))
    found, history = regression.descend(encodings, matrix, hidden_signs=hidden, prior=0.05, steps=60, step_size=0.01)
    images = torch.zeros(8, 5, requires_grad=True)
    optimiser = torch.optim.Adam([images], lr=0.01)
    objectives = []
    for _ in range(61):
        optimiser.zero_grad()
        m, size = matrix @ images, encodings.abs()
        plus, minus = size - m, -(size + m)
        smaller = torch.where(plus.abs() < minus.abs(), plus, minus)
        residual = smaller if hidden else encodings - m
        objective = residual.square().mean() + 0.05 * (1 - images.abs()).mean()
        objectives.append(float(objective.detach()))
        if len(objectives) < 61:
            objective.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    assert torch.allclose(found, images.detach(), atol=1e-5)
    assert history[0] == (0, pytest.approx(objectives[0], rel=1e-5))
    assert history[-1] == (60, pytest.approx(objectives[60], rel=1e-4))


def test_an_image_in_no_mixture_becomes_zero() -> None:
    matrix = regression.mixing_matrix(*mixture(40, 8), torch.arange(9))
    images = torch.randn(9, 6, generator=seeded(1))
    found = regression.least_squares(matrix @ images, matrix)
    assert torch.allclose(found[:8], images[:8], atol=1e-4)
    assert found[8].abs().max() < 1e-6


def test_magnitudes_give_the_images_up_to_one_sign_a_pixel() -> None:
    of = private(30, side=8)
    images = NORMALISE(of.images).flatten(1)
    matrix = regression.mixing_matrix(*mixture(600, 30), torch.arange(30))
    found = magnitudes.retrieve(matrix @ images * -1, matrix, (3, 8, 8))
    flips = (found * images).sum(0).sign()
    assert torch.allclose(found * flips, images, atol=1e-3)
    assert torch.allclose(signs.smooth(found.unflatten(1, (3, 8, 8)), NORMALISE).flatten(1), images, atol=1e-3)


def test_signs_are_put_right_whatever_they_are() -> None:
    images = NORMALISE(private(40, side=12).images)
    flips = 2.0 * torch.randint(2, images.shape[1:], generator=seeded()) - 1
    assert torch.equal(signs.smooth(images * flips, NORMALISE), images)
    assert torch.equal(signs.smooth(-images, NORMALISE), images)


def test_the_simplex_by_hand() -> None:
    rows = torch.tensor([[0.2, 0.3, 0.5], [2.0, 0.0, 0.0], [0.5, 0.5, 0.5], [-1.0, 0.4, 0.8]])
    wanted = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.3, 0.7]])
    assert torch.allclose(coefficients.simplex(rows), wanted, atol=1e-6)


def test_soft_labels_give_coefficients_where_classes_differ() -> None:
    named = torch.eye(3)
    columns = torch.tensor([[0, 1], [1, 2]])
    truth = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    mixed = torch.einsum("nk,nkc->nc", truth, named[columns])
    assert torch.allclose(coefficients.fit(mixed, named, columns, coefficients.even(columns)), truth, atol=1e-5)
    # Of one class, labels tell only the sum.
    same = coefficients.fit(mixed[:1], named[[0, 0, 0]], columns[:1], coefficients.even(columns[:1]))
    assert torch.allclose(same, torch.full((1, 2), 0.5))


def test_unmixing_finds_who_is_mixed_with_whom() -> None:
    indices, weights = mixture(600, 20)
    images = NORMALISE(private(20).images).flatten(1)
    found, guess = unmixing.unmix(
        regression.mixing_matrix(indices, weights, torch.arange(20)) @ images, 20, 3, seeded()
    )
    assert torch.allclose(guess.sum(1), torch.ones(600))
    # Up to the numbering: which encodings share their main image with which.
    main, guessed = (
        ids.gather(1, weight.argmax(1, keepdim=True)) for ids, weight in ((indices, weights), (found, guess))
    )
    agree = ((main == main.T) == (guessed == guessed.T)).float().mean()
    assert agree > 0.98
