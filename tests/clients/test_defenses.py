from __future__ import annotations

import pytest
import torch

from fedsim.clients.defenses.clipping import GradientClipping
from fedsim.clients.defenses.noise import GradientNoise
from fedsim.clients.defenses.pruning import GradientPruning, quantile
from fedsim.protocol import Update


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pruning_zeroes_what_is_below_the_quantile_of_each_tensor() -> None:
    update = Update({"a": torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0]), "b": torch.tensor([[10.0, -0.1]])})
    pruned = GradientPruning(ratio=0.5).perturb(update, rng())
    # |a| has median 3, which stays; |b| has median 5.05.
    assert pruned.tensors["a"].tolist() == [0.0, 0.0, 3.0, -4.0, 5.0]
    assert pruned.tensors["b"].tolist() == [[10.0, 0.0]]


def test_pruning_keeps_ties_and_ratio_zero_changes_nothing() -> None:
    ones = Update({"a": torch.ones(7)})
    assert GradientPruning(ratio=0.9).perturb(ones, rng()).tensors["a"].sum() == 7
    values = torch.randn(50, generator=rng())
    assert torch.equal(GradientPruning(ratio=0.0).perturb(Update({"a": values}), rng()).tensors["a"], values)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("size", [1, 2, 10, 1001])
def test_our_quantile_is_torchs(ratio: float, size: int) -> None:
    values = torch.randn(size, generator=rng(size)).abs()
    torch.testing.assert_close(quantile(values, ratio), torch.quantile(values, ratio))


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_noise_has_the_standard_deviation_asked_for(kind: str) -> None:
    zeros = Update({"a": torch.zeros(200_000)})
    noisy = GradientNoise(kind=kind, std=0.3).perturb(zeros, rng()).tensors["a"]  # type: ignore[arg-type]
    assert noisy.std().item() == pytest.approx(0.3, rel=0.01)
    assert noisy.mean().item() == pytest.approx(0, abs=0.003)
    # The fourth moment tells the two laws apart: 3 for a normal variable, 6 for a Laplace one.
    kurtosis = (noisy**4).mean().item() / noisy.var().item() ** 2
    assert kurtosis == pytest.approx(3 if kind == "gaussian" else 6, rel=0.1)


def test_noise_is_a_function_of_the_generator() -> None:
    update = Update({"a": torch.zeros(5), "b": torch.zeros(5)})
    noise = GradientNoise(std=1.0)
    first, again, other = (noise.perturb(update, rng(seed)).tensors for seed in (1, 1, 2))
    assert torch.equal(first["a"], again["a"])
    assert not torch.equal(first["a"], other["a"])
    assert not torch.equal(first["a"], first["b"])


def test_clipping_scales_a_large_update_to_the_norm_and_leaves_a_small_one() -> None:
    update = Update({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    clipped = GradientClipping(max_norm=1.0).perturb(update, rng())
    assert clipped.norm().item() == pytest.approx(1)
    assert clipped.tensors["a"].item() == pytest.approx(0.6)
    assert GradientClipping(max_norm=6.0).perturb(update, rng()).tensors["a"].item() == 3.0
    each = GradientClipping(max_norm=1.0, scope="tensor").perturb(update, rng()).tensors
    assert (each["a"].item(), each["b"].item()) == (1.0, 1.0)


def test_clipping_an_update_of_zeros_gives_zeros() -> None:
    zeros = Update({"a": torch.zeros(3)})
    assert GradientClipping(max_norm=1.0).perturb(zeros, rng()).tensors["a"].tolist() == [0, 0, 0]
