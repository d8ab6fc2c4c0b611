from __future__ import annotations

from typing import Any

import pytest
import torch

from fedsim.clients.defenses.clipping import GradientClipping
from fedsim.clients.defenses.noise import GradientNoise
from fedsim.clients.defenses.pruning import GradientPruning
from fedsim.clients.defenses.selection import quantile, smallest
from fedsim.clients.workbench import Workbench
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


def test_pruning_takes_every_tensor_batchnorm_and_biases_included(small: Any) -> None:
    ratio = 0.7
    place = Workbench(small(model={"name": "resnet18"}, clients={"batch_size": 2}))
    parameters = {name: value.detach().clone() for name, value in place.model.named_parameters()}
    update = place.train(0, 1, parameters, {})[0].update
    pruned = GradientPruning(ratio).perturb(update, rng()).tensors
    assert {"bn1.weight", "bn1.bias", "linear.bias"} <= pruned.keys()
    for name, value in update.tensors.items():
        bound = quantile(value.abs().flatten(), ratio)
        assert torch.equal(pruned[name], torch.where(value.abs() < bound, 0, value)), name
    # 64 different values: the quantile lies at 0.7 * 63 = 44.1, counted from 0, so 45 are below it.
    assert len(update.tensors["bn1.weight"].unique()) == 64
    assert int((pruned["bn1.weight"] == 0).sum()) == int((pruned["bn1.bias"] == 0).sum()) == 45


def test_global_pruning_has_one_quantile_for_all_tensors() -> None:
    update = Update({"a": torch.tensor([1.0, -2.0, 3.0, -4.0]), "b": torch.tensor([[10.0, -20.0], [3.0, 0.1]])})
    # In order: 0.1, 1, 2, 3, 3, 4, 10, 20; the median is 3, which stays twice.
    pruned = GradientPruning(0.5, "global").perturb(update, rng()).tensors
    assert pruned["a"].tolist() == [0, 0, 3, -4]
    assert pruned["b"].tolist() == [[10, -20], [3, 0]]
    # The quantile at 0.8 * 7 = 5.6 lies between 4 and 10: nothing of the first tensor is left.
    pruned = GradientPruning(0.8, "global").perturb(update, rng()).tensors
    assert pruned["a"].tolist() == [0] * 4
    assert pruned["b"].tolist() == [[10, -20], [0, 0]]
    assert GradientPruning(0.8).perturb(update, rng()).tensors["a"].tolist() == [0, 0, 0, -4]


def test_defenses_act_in_the_order_in_which_they_are_given(small: Any) -> None:
    noise, pruning = {"name": "gradient_noise", "std": 0.1}, {"name": "gradient_pruning", "ratio": 0.9}
    zeros = Update({"a": torch.zeros(100)})
    shares = []
    for defenses in ([noise, pruning], [pruning, noise]):
        place = Workbench(small(clients={"defenses": defenses}))
        shares.append(int((place.perturb(zeros, 0, 1, {}, {})[0].tensors["a"] == 0).sum()))
    assert shares == [90, 0]


def test_a_defense_with_a_memory_works_between_others(small: Any) -> None:
    defenses = [
        {"name": "gradient_clipping", "max_norm": 1.0},
        {"name": "sign_compression", "error_feedback": True},
        {"name": "gradient_noise", "std": 0.0},
    ]
    place = Workbench(small(clients={"defenses": defenses}))
    update, memory, sent = Update({"a": torch.tensor([3.0, 0.0, -4.0])}), {}, torch.zeros(3)
    for round_ in (1, 2, 3):
        left, memory = place.perturb(update, 0, round_, {}, memory)
        sent += left.tensors["a"]
    # Clipped to norm 1 first, then compressed.
    torch.testing.assert_close(sent + memory[1]["a"], 3 * torch.tensor([0.6, 0.0, -0.8]))


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_order_statistics_are_those_of_the_sorted_values(size: int) -> None:
    values = torch.randint(100, (size,), generator=rng(size)).float()
    ordered = values.sort().values
    for rank in {0, size // 2, size - 1}:
        assert smallest(values, rank) == (ordered[rank], ordered[min(rank + 1, size - 1)])


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 0.999, 1.0])
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
