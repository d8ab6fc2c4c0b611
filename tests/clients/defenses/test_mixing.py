from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from fedsim.clients.defenses import mixing
from fedsim.errors import InputError, SettingError


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(law: str, k: int, upper: float, count: int = 400_000) -> np.ndarray:
    """The law as its papers state it, drawn with NumPy."""
    draws = np.random.default_rng(1)
    if law == "dirichlet":
        rows = draws.dirichlet([3.0] + [1.0] * (k - 1), count)
    else:
        rows = np.abs(draws.normal(size=(count, k)))
        rows /= rows.sum(1, keepdims=True)
    return rows[rows.max(1) <= upper]


@pytest.mark.parametrize("law", ["dirichlet", "half_normal"])
@pytest.mark.parametrize(("k", "upper"), [(2, 0.65), (4, 0.65), (6, 0.65), (4, 0.4), (3, 1.0)])
def test_coefficients_follow_the_law(law: mixing.Law, k: int, upper: float) -> None:
    found = mixing.coefficients(40_000, k, law, upper, rng())
    assert found.shape == (40_000, k) and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= upper
    torch.testing.assert_close(found.sum(1), torch.ones(40_000))
    wanted = reference(law, k, upper)
    for moment in (1, 2):
        # 40,000 draws of something within [0, 1] with a deviation below .25 have a mean within .005 (4 sigma).
        np.testing.assert_allclose((found.double() ** moment).mean(0), (wanted**moment).mean(0), atol=0.006)


def test_the_own_coefficient_is_the_larger_one_under_dirichlet_alone() -> None:
    own, *others = mixing.coefficients(40_000, 4, "dirichlet", 0.65, rng()).mean(0).tolist()
    assert own > 0.42 > 0.21 > max(others)
    assert np.ptp(mixing.coefficients(40_000, 4, "half_normal", 0.65, rng()).mean(0).numpy()) < 0.01


def test_rows_are_independent_and_a_function_of_the_generator() -> None:
    first, again, other = (mixing.coefficients(3000, 4, "dirichlet", 0.65, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(first[:, 0].unique()) > 2990
    lag = np.corrcoef(first[:-1, 0].numpy(), first[1:, 0].numpy())[0, 1]
    assert abs(lag) < 0.08


def test_the_private_coefficients_sum_to_the_least_at_least() -> None:
    found = mixing.coefficients(40_000, 4, "half_normal", 0.65, rng(), private=2, least=0.3)
    assert found[:, :2].sum(1).min() >= 0.3 - 1e-6
    wanted = reference("half_normal", 4, 0.65)
    wanted = wanted[wanted[:, :2].sum(1) >= 0.3]
    np.testing.assert_allclose(found.mean(0), wanted.mean(0), atol=0.006)


@pytest.mark.parametrize(("k", "upper"), [(2, 0.5), (4, 0.25), (4, 0.1), (3, 0.0)])
def test_an_upper_bound_that_nothing_meets_is_refused(k: int, upper: float) -> None:
    with pytest.raises(SettingError, match=f"upper: {k} coefficients .* above 1/{k}"):
        mixing.check_upper("defense x", k, upper)
    mixing.check_upper("defense x", k, 1 / k + 0.01)


def test_bounds_that_hardly_any_draw_meets_end_in_an_error_and_not_in_a_loop() -> None:
    with pytest.raises(InputError, match=r"only \d of \d+ draws of k = 6 .*upper = 0.1667; widen"):
        mixing.coefficients(4, 6, "dirichlet", 0.1667, rng())


@pytest.mark.parametrize("size", [4, 5, 50])
def test_positions_are_distinct_and_in_range(size: int) -> None:
    taken = torch.arange(500)[:, None] % size
    found = mixing.distinct(taken, size, 3, rng())
    assert found.shape == (500, 3) and found.dtype == torch.int64
    assert found.min() == 0 and found.max() == size - 1
    assert all(len(set(row)) == 4 for row in torch.cat([taken, found], 1).tolist())


@pytest.mark.parametrize("own", [0, 2, 4])
def test_every_ordered_choice_is_equally_likely(own: int) -> None:
    count = 24_000
    found = mixing.distinct(torch.full((count, 1), own), 5, 3, rng())
    times = Counter(map(tuple, found.tolist()))
    choices = set(itertools.permutations(set(range(5)) - {own}, 3))
    assert set(times) == choices
    expected = count / len(choices)
    # Chi-squared with 23 degrees of freedom: 49.7 is exceeded once in a thousand times.
    assert sum((times[one] - expected) ** 2 / expected for one in choices) < 49.7


def test_positions_can_be_drawn_with_none_taken() -> None:
    found = mixing.distinct(torch.empty(200, 0, dtype=torch.int64), 3, 3, rng())
    assert all(sorted(row) == [0, 1, 2] for row in found.tolist())
    assert len(set(map(tuple, found.tolist()))) == 6


def test_signs_are_fair_and_independent() -> None:
    values = torch.full((50, 3, 20, 20), 2.0)
    flipped = mixing.flip_signs(values, rng())
    assert torch.equal(flipped.abs(), values)
    up = (flipped > 0).double()
    # Five deviations of a binomial law, over all 60,000 entries and over each image, channel, row and column.
    for dims in ((0, 1, 2, 3), (1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)):
        shares = up.mean(dims)
        draws = up.numel() / shares.numel()
        assert (shares - 0.5).abs().max() < 5 * 0.5 / draws**0.5
    agree = (up[:, 0] == up[:, 1]).double().mean()
    assert abs(agree - 0.5) < 5 * 0.5 / 20_000**0.5
    assert torch.equal(flipped, mixing.flip_signs(values, rng()))
    assert not torch.equal(flipped, mixing.flip_signs(values, rng(1)))


def test_soft_labels() -> None:
    assert mixing.soft(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    already = torch.tensor([[0.25, 0.75]])
    assert mixing.soft(already, 2) is already
