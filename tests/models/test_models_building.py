from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from fedsim.errors import InputError
from fedsim.models.building import build
from fedsim.models.catalog import MLP, PreActResNet18
from fedsim.models.loss import cross_entropy

SHAPE = (1, 8, 8)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build(MLP(), SHAPE, 10, seed=5).state_dict()
    torch.manual_seed(2)
    again = build(MLP(), SHAPE, 10, seed=5).state_dict()
    other = build(MLP(), SHAPE, 10, seed=6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc1.weight"], other["fc1.weight"])


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    build(MLP(), SHAPE, 10, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_trying_a_network_out_leaves_its_statistics_as_new() -> None:
    network = build(PreActResNet18(), (3, 8, 8), 10, seed=0)
    assert all(int(b) == 0 for name, b in network.named_buffers() if name.endswith("num_batches_tracked"))


@dataclass(frozen=True)
class Wrong:
    """A third party's model that ignores how many classes there are."""

    batchnorm: ClassVar[bool | None] = False
    network: Any = None

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return self.network()


def test_a_model_with_the_wrong_output_is_refused() -> None:
    with pytest.raises(InputError, match=r"model Wrong returns \(1, 1, 8, 8\) .* not \(1, 10\)"):
        build(Wrong(nn.Identity), SHAPE, 10, seed=0)


def test_a_model_that_fails_is_refused_in_its_own_words() -> None:
    with pytest.raises(InputError, match=r"model Wrong cannot take images of 1x8x8 .*mat1"):
        build(Wrong(lambda: nn.Linear(5, 10)), SHAPE, 10, seed=0)


def test_loss_of_hard_and_of_mixed_labels() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    # -log(e^2 / (e^2 + 1)) = 0.126928, -log(1/2) = 0.693147
    hard = cross_entropy(logits, torch.tensor([0, 1]))
    assert float(hard) == pytest.approx((0.126928 + 0.693147) / 2, abs=1e-6)
    one_hot = cross_entropy(logits, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert float(one_hot) == pytest.approx(float(hard))
    # The first row: 0.25 * 0.126928 + 0.75 * 2.126928
    mixed = cross_entropy(logits, torch.tensor([[0.25, 0.75], [0.0, 1.0]]))
    assert float(mixed) == pytest.approx((1.626928 + 0.693147) / 2, abs=1e-6)
