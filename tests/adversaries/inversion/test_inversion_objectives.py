from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedsim.adversaries.inversion import awareness
from fedsim.adversaries.inversion.objectives import cosine, squared_l2
from fedsim.adversaries.inversion.priors import statistics_distance, total_variation
from fedsim.clients.defenses.pruning import GradientPruning
from fedsim.protocol import Update


def tensors(seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng) for shape in [(4, 3, 3, 3), (5, 7), (5,)]]


def flat(values: list[Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in values])


def test_cosine_by_hand() -> None:
    objective = cosine([torch.tensor([3.0, 0.0]), torch.tensor([4.0])])
    value, derivative = objective([torch.tensor([0.0, 2.0]), torch.tensor([2.0])])
    # <g, t> = 8, |g| = sqrt 8, |t| = 5
    assert value.item() == pytest.approx(1 - 8 / (5 * 8**0.5), abs=1e-6)
    # (cos / |g|^2) g - t / (|g| |t|), in the first entry of t that g lacks
    assert derivative[0][0].item() == pytest.approx(-3 / (5 * 8**0.5), abs=1e-6)


def test_cosine_ignores_the_scale_of_either_gradient() -> None:
    target, guess = tensors(0), tensors(1)
    value, _ = cosine(target)(guess)
    scaled, _ = cosine([7 * t for t in target])([0.01 * g for g in guess])
    assert scaled.item() == pytest.approx(value.item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["cosine", "masked", "squared_l2"])
def test_the_closed_form_derivative_is_autograds(kind: str) -> None:
    target, guess = tensors(0), [g.requires_grad_() for g in tensors(1)]
    masks = [(t > 0).float() for t in target]
    full: dict[str, Callable[[], Tensor]] = {
        "cosine": lambda: 1 - torch.cosine_similarity(flat(guess), flat(target), dim=0),
        "masked": lambda: 1 - torch.cosine_similarity(flat(guess) * flat(masks), flat(target) * flat(masks), dim=0),
        "squared_l2": lambda: (flat(guess) - flat(target)).square().sum(),
    }
    objective = {"cosine": cosine(target), "masked": cosine(target, masks), "squared_l2": squared_l2(target)}[kind]
    expected = torch.autograd.grad(full[kind](), guess)
    value, derivative = objective([g.detach() for g in guess])
    assert value.item() == pytest.approx(full[kind]().item(), rel=1e-5)
    torch.testing.assert_close(list(derivative), list(expected), rtol=1e-4, atol=1e-6)


def test_cosine_is_precise_over_millions_of_entries() -> None:
    """Summed one after the other in float32, |g| is off by 7e-4 and an exact match would not be worth 0."""
    g = torch.randn(1024, 6272, generator=torch.Generator().manual_seed(0))
    value, derivative = cosine([g])([2 * g])
    assert abs(value.item()) < 1e-6
    assert derivative[0].norm().item() < 1e-6


def test_the_layout_in_memory_makes_no_difference() -> None:
    target, guess = tensors(0), tensors(1)
    value, derivative = cosine(target)(guess)
    expected = [d.clone() for d in derivative]
    laid_out = [g.contiguous(memory_format=torch.channels_last) if g.dim() == 4 else g for g in guess]
    again, derivative = cosine(target)(laid_out)
    assert again.item() == pytest.approx(value.item(), abs=1e-6)
    torch.testing.assert_close(list(derivative), expected)


def test_knowing_pruning_matches_exactly_the_entries_that_pruning_kept() -> None:
    whole = {str(place): value for place, value in enumerate(tensors(0))}
    for ratio in (0.5, 0.9, 0.97):
        pruned = list(GradientPruning(ratio).perturb(Update(whole), torch.Generator()).tensors.values())
        matched = awareness.match(pruned, [{"name": "gradient_pruning", "ratio": ratio}])
        assert matched.masks is not None
        for mask, value in zip(matched.masks, pruned, strict=True):
            assert torch.equal(mask, (value != 0).float())


def test_knowing_pruning_finds_the_kept_entries_below_small_noise() -> None:
    whole = tensors(0)
    pruned = list(GradientPruning(0.9).perturb(Update({"a": whole[0]}), torch.Generator()).tensors.values())
    rng = torch.Generator().manual_seed(0)
    noisy = [value + 1e-3 * torch.randn(value.shape, generator=rng) for value in pruned]
    matched = awareness.match(noisy, [{"name": "gradient_pruning", "ratio": 0.9}, {"name": "gradient_noise"}])
    assert matched.masks is not None
    assert torch.equal(matched.masks[0], (pruned[0] != 0).float())


def test_other_defenses_change_nothing_of_what_is_matched() -> None:
    assert awareness.match(tensors(0), [{"name": "gradient_noise", "std": 0.1}]).masks is None


def test_total_variation_by_hand() -> None:
    image = torch.tensor([[0.0, 1.0], [0.0, 3.0]]).reshape(1, 1, 2, 2)
    # |dx| = 1, 3; |dy| = 0, 2
    assert total_variation(image).item() == pytest.approx(2 + 1)


def test_statistics_distance_by_hand() -> None:
    first = ((torch.tensor([3.0, 4.0]), torch.tensor([1.0, 1.0])), (torch.zeros(2), torch.ones(2)))
    second = ((torch.tensor([1.0]), torch.tensor([2.0])), (torch.tensor([1.0]), torch.tensor([0.5])))
    assert statistics_distance([first, second]).item() == pytest.approx(5 + 0 + 0 + 1.5)
    with pytest.raises(ValueError, match="no BatchNorm"):
        statistics_distance([])
