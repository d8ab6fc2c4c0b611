from __future__ import annotations

import math

import pytest
import torch
from sites import rng, site
from torch import Tensor, nn

from fedsim.clients.defenses.outpost import Outpost
from fedsim.clients.defenses.pruning import GradientPruning
from fedsim.protocol import Update

ALWAYS = 0.0
"""A decay with which every round is perturbed."""


class Weights(nn.Module):
    """Two tensors of different spread, and one of a single entry."""

    def __init__(self) -> None:
        super().__init__()
        draws = rng(3)
        self.wide = nn.Parameter(torch.randn(40, 50, generator=draws) * 0.5)
        self.flat = nn.Parameter(torch.ones(300))
        self.huge = nn.Parameter(torch.randn(2000, generator=draws) * 100)
        self.single = nn.Parameter(torch.ones(1))


def update_of(model: nn.Module) -> Update:
    draws = rng(6)
    return Update({name: torch.randn(value.shape, generator=draws) for name, value in model.named_parameters()})


def send(defense: Outpost, update: Update, round_: int = 1, seed: int = 0) -> dict[str, Tensor]:
    sent, memory = defense.perturb_at(update, site(Weights(), round_=round_), rng(seed))
    assert memory == {}
    return dict(sent.tensors)


def test_it_prunes_every_tensor_by_itself() -> None:
    update = update_of(Weights())
    sent = send(Outpost(ALWAYS, noise=0.0, ratio=0.8), update)
    expected = GradientPruning(0.8).perturb(update, rng()).tensors
    for name in sent:
        assert torch.equal(sent[name], expected[name])


@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
def test_noise_goes_to_the_entries_of_most_information_over_all_tensors(share: float) -> None:
    update = update_of(Weights())
    quiet, loud = (send(Outpost(ALWAYS, noise, share, 0.0), update) for noise in (0.0, 0.8))
    information = torch.cat([value.flatten() for value in update.tensors.values()]).double() ** 2
    bound = torch.quantile(information, 1 - share)
    for name in ("wide", "huge"):
        assert torch.equal(loud[name] != quiet[name], update.tensors[name].double() ** 2 >= bound)
    assert torch.equal(loud["flat"], quiet["flat"])  # its weights are all the same: no spread, no risk
    assert torch.equal(loud["single"], quiet["single"])


def test_noise_is_scaled_by_the_spread_of_the_tensors_weights_up_to_one() -> None:
    update = update_of(Weights())
    quiet, loud = (send(Outpost(ALWAYS, noise, 1.0, 0.5), update) for noise in (0.0, 0.8))
    variance = float(Weights().wide.detach().var())
    assert 0.2 < variance < 0.3
    assert float((loud["wide"] - quiet["wide"]).std()) == pytest.approx(0.8 * variance, rel=0.06)
    assert float((loud["huge"] - quiet["huge"]).std()) == pytest.approx(0.8, rel=0.06)


@pytest.mark.parametrize("round_", [1, 8, 72])
def test_the_share_of_perturbed_rounds_falls_with_the_round(round_: int) -> None:
    update, defense, tries = Update({"single": torch.tensor([2.0])}), Outpost(decay=0.125, noise=0.0), 1500
    marked = Update({"wide": torch.tensor([1.0, 2.0])})
    hit = sum(float(send(defense, marked, round_, seed)["wide"][0]) == 0 for seed in range(tries))
    expected = 1 / (1 + 0.125 * round_)
    assert hit / tries == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / tries))
    assert send(defense, update, round_)["single"].item() == 2.0


def test_a_round_that_is_not_perturbed_sends_the_update_itself() -> None:
    update = update_of(Weights())
    sent = send(Outpost(decay=1e9), update)
    assert all(torch.equal(sent[name], value) for name, value in update.tensors.items())


def test_it_is_a_function_of_the_generator() -> None:
    update = update_of(Weights())
    first, again, other = (send(Outpost(ALWAYS), update, seed=seed)["wide"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_small_gradients_have_an_order_too() -> None:
    """The square of 1e-30 is no float32, but the largest entries are still the largest."""
    values = torch.linspace(1, 2, 100) * 1e-30
    weights = nn.Module()
    weights.a = nn.Parameter(torch.randn(100, generator=rng()))
    sent = Outpost(ALWAYS, share=0.1, ratio=0.0).perturb_at(Update({"a": values}), site(weights), rng())[0].tensors["a"]
    assert (sent != values).nonzero().flatten().tolist() == list(range(90, 100))
