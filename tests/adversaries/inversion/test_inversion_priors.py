"""What a natural batch is expected to be like, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedsim.adversaries.inversion import priors

# |dx| = 1, 3 (rows); |dy| = 0, 2 (columns)
IMAGE = torch.tensor([[0.0, 1.0], [0.0, 3.0]]).reshape(1, 1, 2, 2)


def images(count: int, seed: int = 0, size: int = 5) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        (1, 1, 2 + 1),
        (2, 1, (1 + 9) / 2 + (0 + 4) / 2),
        # One corner is left where both differences begin: dx = 1, dy = 0.
        (2, 0.5, 1),
        (1, 2, 1),
    ],
)
def test_total_variation_by_hand(p: float, q: float, expected: float) -> None:
    assert priors.total_variation(IMAGE, p, q).item() == pytest.approx(expected, abs=1e-6)


def test_isotropic_total_variation_is_the_mean_length_of_the_slope() -> None:
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    ramp = (3 * columns + 4 * rows).expand(2, 3, 6, 7)
    assert priors.total_variation(ramp, 2, 0.5).item() == pytest.approx(5, rel=1e-6)
    assert priors.total_variation(ramp).item() == pytest.approx(7, rel=1e-6)


@pytest.mark.parametrize(("p", "q"), [(2, 0.5), (0.5, 1), (0.5, 0.5)])
def test_total_variation_has_a_slope_on_a_flat_image(p: float, q: float) -> None:
    flat = torch.zeros(1, 1, 4, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(priors.total_variation(flat, p, q), flat)
    assert torch.isfinite(slope).all()


def test_absolute_total_variation_is_blind_to_signs() -> None:
    x = images(2)
    signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    assert priors.total_variation(x * signs, absolute=True) == priors.total_variation(x, absolute=True)
    torch.testing.assert_close(priors.total_variation(x.abs()), priors.total_variation(x, absolute=True))
    assert priors.total_variation(x * signs) != priors.total_variation(x)


def test_squared_norm_by_hand() -> None:
    assert priors.squared_norm(IMAGE).item() == pytest.approx((1 + 9) / 4)


def test_orthogonality_by_hand() -> None:
    # <a, b> = 3, <a, c> = 2, <b, c> = 4 over 2 pixels; each pair counts twice among 6 ordered ones.
    batch = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]).reshape(3, 1, 1, 2)
    batch[2] = torch.tensor([4 / 3, 1 / 3])
    assert priors.orthogonality(batch).item() == pytest.approx(((3 / 2) ** 2 + (2 / 2) ** 2 + (4 / 2) ** 2) / 3)


def test_orthogonality_of_one_image_and_of_orthogonal_ones_is_zero() -> None:
    one = images(1).requires_grad_()
    value = priors.orthogonality(one)
    assert value.item() == 0
    assert torch.autograd.grad(value, one)[0].abs().max() == 0
    assert priors.orthogonality(torch.eye(4).reshape(4, 1, 2, 2)).item() == 0


def test_statistics_distance_by_hand() -> None:
    first = ((torch.tensor([3.0, 4.0]), torch.tensor([1.0, 1.0])), (torch.zeros(2), torch.ones(2)))
    second = ((torch.tensor([1.0]), torch.tensor([2.0])), (torch.tensor([1.0]), torch.tensor([0.5])))
    assert priors.statistics_distance([first, second]).item() == pytest.approx(5 + 0 + 0 + 1.5)
    with pytest.raises(ValueError, match="no BatchNorm"):
        priors.statistics_distance([])


def test_statistics_distance_has_a_slope_where_the_statistics_agree() -> None:
    mean = torch.ones(3, requires_grad=True)
    (slope,) = torch.autograd.grad(
        priors.statistics_distance([((mean, torch.ones(3)), (torch.ones(3), torch.ones(3)))]), mean
    )
    assert torch.isfinite(slope).all()


def test_feature_distance_by_hand() -> None:
    features, wanted = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    assert priors.feature_distance(features, wanted).item() == pytest.approx((1 + 4 + 0 + 9) / 4)


def test_group_consistency_by_hand() -> None:
    # Two restarts of one pixel: 1 and 5, the mean 3; each is 2 away.
    value, slope = priors.group_consistency(torch.tensor([1.0, 5.0]).reshape(2, 1, 1, 1, 1))
    assert value.tolist() == [4, 4]
    assert slope.flatten().tolist() == [-4, 4]


def test_group_consistency_takes_the_mean_as_a_constant() -> None:
    guesses = torch.stack([images(2, seed) for seed in range(3)])
    value, slope = priors.group_consistency(guesses)
    mean = guesses.mean(0)
    for place, guess in enumerate(guesses):
        own = guess.clone().requires_grad_()
        term = ((own - mean) ** 2).mean()
        torch.testing.assert_close(value[place], term.detach())
        torch.testing.assert_close(slope[place], torch.autograd.grad(term, own)[0])


def test_epochs_that_agree_up_to_their_order_are_worth_nothing() -> None:
    first = images(4)
    second, third = first[[2, 0, 3, 1]], first[[3, 2, 1, 0]]
    assert priors.epoch_order_invariance(torch.cat([first, second, third]), 3).item() == pytest.approx(0, abs=1e-30)
    assert priors.epoch_order_invariance(first, 1).item() == 0


def test_epoch_order_invariance_does_not_know_the_order_within_an_epoch() -> None:
    first, second = images(4, 1), images(4, 2)
    value = priors.epoch_order_invariance(torch.cat([first, second]), 2)
    assert value > 0.1
    again = priors.epoch_order_invariance(torch.cat([first[[1, 3, 0, 2]], second[[3, 2, 1, 0]]]), 2)
    torch.testing.assert_close(again, value)


def test_epoch_order_invariance_by_hand() -> None:
    # Two epochs of two pixels: (0, 2) and (4, 8). The means 1 and 6 are 2.5 from their own, the maxima 2 and 8 are 3.
    epochs = torch.tensor([0.0, 2.0, 4.0, 8.0]).reshape(4, 1, 1, 1)
    assert priors.epoch_order_invariance(epochs, 2).item() == pytest.approx(2.5**2 + 3**2)
