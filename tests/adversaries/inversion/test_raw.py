"""What an inversion hands on to a decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attacking import attack, attack_many

from fedsim.adversaries.decoding.carlini import Carlini
from fedsim.adversaries.inversion.recipes.matching import Dimitrov, Geiping
from fedsim.data.dataset import Normalisation

NORMALISE = Normalisation((0.3,), (0.4,))  # of the fixture's images


@pytest.mark.parametrize("recipe", [Geiping, lambda **how: Carlini(batchnorm="none", **how)])
def test_raw_is_the_guess_before_it_is_clamped(victim_of: Callable[..., Any], recipe: Callable[..., Any]) -> None:
    seen, _ = victim_of(2)
    settings = recipe(iterations=3, box=False, tv=0.0, engine="eager")
    for found in (attack(settings, seen), *attack_many(settings, [seen, seen], [1, 2])):
        assert found.raw is not None and found.raw.dtype == torch.float32 and found.raw.device.type == "cpu"
        shown = NORMALISE.inverse(found.raw)
        assert shown.min() < 0 and shown.max() > 1  # it starts at N(0, 1)
        assert torch.equal(shown.clamp(0, 1), found.images)


def test_there_is_no_raw_guess_where_each_local_epoch_has_its_own(victim_of: Callable[..., Any]) -> None:
    seen, _ = victim_of(2, algorithm="fedavg", num_steps=2)
    assert attack(Dimitrov(iterations=2, engine="eager"), seen).raw is None
