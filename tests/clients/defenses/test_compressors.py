from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from asking import check_refused, document, entry
from sites import rng, site
from torch import Tensor

from fedsim.clients.defenses.quantisation import Quantisation
from fedsim.clients.defenses.sign import SignCompression
from fedsim.clients.defenses.sparsification import RandomSparsification
from fedsim.protocol import Update

VALUES = torch.tensor([0.0, 0.3, -0.2, 1.0, -0.9, 0.05])
DRAWS = 4000


def send(defense: Any, values: Tensor, seed: int = 0) -> Tensor:
    """What becomes of one tensor, without a memory."""
    update, memory = defense.perturb_at(Update({"a": values}), site(), rng(seed))
    assert memory == {}
    sent: Tensor = update.tensors["a"]
    return sent


def average(defense: Any, values: Tensor) -> Tensor:
    """The mean of many independent sendings of the same tensor."""
    draws = rng(1)
    sent = [defense.perturb_at(Update({"a": values}), site(), draws)[0].tensors["a"] for _ in range(DRAWS)]
    return torch.stack(sent).mean(0)


# --- sign ----------------------------------------------------------------------------------------------------------


def test_the_plain_sign_is_minus_one_zero_or_one() -> None:
    assert send(SignCompression(scale="none"), VALUES).tolist() == [0, 1, -1, 1, -1, 1]


def test_the_scaled_sign_has_each_tensors_own_mean_size() -> None:
    update = Update({"a": VALUES, "b": torch.tensor([[-8.0, 0.0], [4.0, 4.0]])})
    sent = SignCompression().perturb_at(update, site(), rng())[0].tensors
    torch.testing.assert_close(sent["a"], torch.tensor([0, 1, -1, 1, -1, 1]) * (2.45 / 6))
    assert sent["b"].tolist() == [[-4, 0], [4, 4]]


def test_no_multiple_of_the_sign_is_nearer_than_the_scaled_one() -> None:
    values = torch.randn(50, generator=rng())
    distance = (send(SignCompression(), values) - values).norm()
    assert distance < values.norm()
    for factor in (0.95, 1.05):
        assert (send(SignCompression(), values) * factor - values).norm() > distance


def test_signs_of_a_symmetric_update_are_balanced() -> None:
    assert abs(float(send(SignCompression(scale="none"), torch.randn(100_000, generator=rng())).mean())) < 0.01


# --- quantisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_quantised_values_are_neighbours_on_the_grid(bits: int, norm: str, rounding: str) -> None:
    values = torch.randn(500, generator=rng(bits), dtype=torch.float64)
    sent = send(Quantisation(bits, rounding, norm), values)  # type: ignore[arg-type]
    steps = 2 ** (bits - 1) - 1
    unit = (values.abs().max() if norm == "max" else values.norm()) / steps
    levels = sent / unit
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-7)
    assert levels.abs().max() <= steps + 1e-7
    assert torch.all((sent - values).abs() <= unit * ((0.5 if rounding == "nearest" else 1) + 1e-7))
    if norm == "max":
        assert len(levels.round().unique()) > 2
        assert levels.abs().max().round() == steps  # the largest entry is on the grid


def test_quantisation_by_hand() -> None:
    # 3 bits: s = 3. The largest entry is 1.5, so the grid has steps of 0.5.
    values = torch.tensor([1.5, 0.7, -0.8, 0.25, -0.2, 0.0])
    assert send(Quantisation(3, "nearest"), values).tolist() == [1.5, 0.5, -1.0, 0.0, 0.0, 0.0]
    # 2 bits: s = 1. The norm is 5, and 4 is nearer to 5 than to 0.
    assert send(Quantisation(2, "nearest", "l2"), torch.tensor([3.0, -4.0])).tolist() == [5.0, -5.0]


@pytest.mark.parametrize("bits", [2, 4, 16])
@pytest.mark.parametrize("norm", ["max", "l2"])
def test_stochastic_rounding_is_unbiased_and_rounding_to_the_nearest_is_not(bits: int, norm: str) -> None:
    defense = Quantisation(bits, "stochastic", norm)  # type: ignore[arg-type]
    unit = float(VALUES.abs().max() if norm == "max" else VALUES.norm()) / (2 ** (bits - 1) - 1)
    # One draw deviates by half a step at most: five standard errors of the mean.
    tolerance = 5 * 0.5 * unit / DRAWS**0.5
    assert (average(defense, VALUES) - VALUES).abs().max() < tolerance
    nearest = send(Quantisation(bits, "nearest", norm), VALUES)  # type: ignore[arg-type]
    assert (nearest - VALUES).abs().max() > tolerance


def test_rounding_to_the_nearest_by_the_euclidean_norm_may_leave_nothing() -> None:
    values = torch.ones(500)  # each less than half the norm, 22.4
    assert not send(Quantisation(2, "nearest", "l2"), values).any()
    assert send(Quantisation(2, "stochastic", "l2"), values).any()


def test_zeros_and_tiny_numbers_survive_quantisation() -> None:
    for norm in ("max", "l2"):
        assert send(Quantisation(norm=norm), torch.zeros(4)).tolist() == [0] * 4  # type: ignore[arg-type]
    tiny = torch.tensor([1e-38, -1e-38])
    torch.testing.assert_close(send(Quantisation(16, "nearest"), tiny) / tiny, torch.ones(2), rtol=0.01, atol=0)


# --- random sparsification -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("size", [1, 7, 100, 5000])
def test_exactly_the_share_is_kept_and_rescaled_by_it(ratio: float, size: int) -> None:
    values = torch.randn(size, generator=rng(size)) + 10
    kept = max(1, round((1 - ratio) * size))
    plain = send(RandomSparsification(ratio, rescale=False), values)
    assert int((plain != 0).sum()) == kept
    assert torch.equal(plain[plain != 0], values[plain != 0])
    torch.testing.assert_close(send(RandomSparsification(ratio), values), plain * (size / kept))


def test_rescaled_sparsification_is_unbiased_and_the_other_is_not() -> None:
    # An entry is 6 / 2 times itself with probability 1 / 3: a standard deviation of sqrt(2) times itself.
    tolerance = 5 * 2**0.5 / DRAWS**0.5
    assert (average(RandomSparsification(0.7), VALUES) - VALUES).abs().max() < tolerance
    shrunk = average(RandomSparsification(0.7, rescale=False), VALUES)
    torch.testing.assert_close(shrunk, VALUES / 3, rtol=0, atol=tolerance)


def test_every_pair_of_entries_is_as_likely() -> None:
    """The choice is one of subsets, not of single entries."""
    draws, counts = rng(2), torch.zeros(4, 4)
    for _ in range(DRAWS):
        sent = RandomSparsification(0.5).perturb_at(Update({"a": torch.ones(4)}), site(), draws)[0].tensors["a"]
        counts += torch.outer(sent > 0, sent > 0)
    pairs = counts[~torch.eye(4, dtype=torch.bool)] / DRAWS
    assert (pairs - 1 / 6).abs().max() < 5 * (1 / 6 * 5 / 6 / DRAWS) ** 0.5


# --- what they share -----------------------------------------------------------------------------------------------

FEEDBACK = [
    SignCompression(error_feedback=True),
    Quantisation(3, "stochastic", "max", True),
    Quantisation(2, "nearest", "l2", True),
    RandomSparsification(0.8, False, True),
]


@pytest.mark.parametrize("defense", FEEDBACK, ids=str)
def test_with_feedback_all_that_was_sent_and_the_memory_are_all_updates(defense: Any) -> None:
    draws, memory = rng(), {}
    shapes = {"a": (40,), "b.weight": (5, 3)}
    given = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    sent = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    for round_ in range(1, 6):
        tensors = {name: torch.randn(shape, generator=draws, dtype=torch.float64) for name, shape in shapes.items()}
        place = site(memory=memory, round_=round_)
        update, memory = defense.perturb_at(Update(tensors), place, draws)
        assert memory.keys() == shapes.keys()
        for name in shapes:
            given[name] += tensors[name]
            sent[name] += update.tensors[name]
    assert (memory["a"].abs() > 0.01).any()
    for name in shapes:
        torch.testing.assert_close(sent[name] + memory[name], given[name], rtol=0, atol=1e-12)


def test_feedback_compresses_the_update_and_the_residual_together() -> None:
    defense = SignCompression(error_feedback=True)
    update = Update({"a": torch.tensor([1.0, -3.0])})
    first, memory = defense.perturb_at(update, site(), rng())
    assert first.tensors["a"].tolist() == [2.0, -2.0]
    assert memory["a"].tolist() == [-1.0, -1.0]
    # 1 - 1 and -3 - 1: the sign of 0 is 0, the mean size 2.
    second, memory = defense.perturb_at(update, site(memory=memory), rng())
    assert second.tensors["a"].tolist() == [0.0, -2.0]
    assert memory["a"].tolist() == [0.0, -2.0]


@pytest.mark.parametrize(
    "defense", [SignCompression(), Quantisation(), Quantisation(4, norm="l2"), RandomSparsification()], ids=str
)
def test_the_same_generator_gives_the_same_bits_and_the_input_stays(defense: Any) -> None:
    values = torch.randn(300, generator=rng(9))
    before = values.clone()
    first, again, other = (send(defense, values, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(values, before)
    assert first.dtype == values.dtype and first.shape == values.shape
    assert torch.equal(first, other) == isinstance(defense, SignCompression)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"name": '"sign_compression"', "scale": '"none"'}, 'set scale = "mean"'),
        ({"name": '"random_sparsification"'}, "set rescale = false"),
    ],
)
def test_feedback_that_makes_no_sense_is_refused_in_the_file(
    settings: dict[str, str], remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = document(tail=entry("clients.defenses", {"error_feedback": "true"}, settings))
    check_refused(capsys, tmp_path, text, "clients.defenses[0].error_feedback", remedy)
