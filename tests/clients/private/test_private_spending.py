"""What private steps cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from opacus.accountants import PRVAccountant, RDPAccountant

from fedsim.clients.defenses.base import Plan
from fedsim.clients.private import spending
from fedsim.clients.private.dp_sgd import DPSGD
from fedsim.errors import SettingError
from fedsim.grids.flower_internals import TensorArray, from_record, to_record
from fedsim.models.building import build
from fedsim.models.catalog import MLP

PLAN = Plan(size=200, batch_size=20, steps=7, rounds=5, shape=(1, 8, 8), classes=4)


def after(defense: DPSGD, rounds: int, plan: Plan = PLAN) -> dict[str, torch.Tensor]:
    memory: dict[str, torch.Tensor] = {}
    for _ in range(rounds):
        memory = defense.spend(memory, plan)
    return memory


def test_epsilon_is_that_of_opacus_for_the_same_steps() -> None:
    accountant = RDPAccountant()
    for _ in range(21):
        accountant.step(noise_multiplier=1.3, sample_rate=0.1)
    memory = after(DPSGD(noise_multiplier=1.3), 3)
    assert memory["history"].tolist() == [[1.3, 0.1, 21.0]]
    assert DPSGD(noise_multiplier=1.3).spent(memory) == (accountant.get_epsilon(1e-5), 1e-5)


def test_the_whole_history_counts_also_where_it_changed() -> None:
    history = spending.extended(spending.extended(None, 1.0, 0.1, 5), 2.0, 0.2, 3)
    accountant = RDPAccountant()
    accountant.history = [(1.0, 0.1, 5), (2.0, 0.2, 3)]
    assert spending.epsilon(history, 1e-6, "rdp") == accountant.get_epsilon(1e-6)
    assert spending.epsilon(history, 1e-6, "rdp") > spending.epsilon(history[:1], 1e-6, "rdp")


def test_epsilon_grows_with_rounds_and_falls_with_noise() -> None:
    costs = [DPSGD().spent(after(DPSGD(), rounds))[0] for rounds in (0, 1, 2, 5)]
    assert costs[0] == 0
    assert costs == sorted(set(costs))
    loud = DPSGD(noise_multiplier=3.0)
    assert loud.spent(after(loud, 5))[0] < costs[-1]


def test_a_history_survives_as_bytes() -> None:
    defense = DPSGD(noise_multiplier=0.7)
    record = to_record(after(defense, 2))
    array = record["history"]
    assert isinstance(array, TensorArray)
    plain = type(array).__mro__[1](dtype="float64", shape=array.shape, stype=array.stype, data=array.data)
    back = from_record({"history": plain})
    assert torch.equal(back["history"], after(defense, 2)["history"])
    assert defense.spent(defense.spend(back, PLAN)) == defense.spent(after(defense, 3))


def test_without_noise_there_is_no_bound() -> None:
    silent = DPSGD(noise_multiplier=0.0)
    assert silent.spent(after(silent, 1))[0] == float("inf")


def test_the_other_accountant_is_tighter() -> None:
    memory = after(DPSGD(), 2)
    accountant = PRVAccountant()
    accountant.history = [(1.0, 0.1, 14)]
    epsilon, _ = DPSGD(accountant="prv").spent(memory)
    assert epsilon == pytest.approx(accountant.get_epsilon(1e-5))
    assert epsilon < DPSGD().spent(memory)[0]


@pytest.mark.parametrize("target", [0.5, 3.0])
def test_noise_is_calibrated_to_the_target_after_all_rounds(target: float) -> None:
    defense = DPSGD(target_epsilon=target)
    epsilon, _ = defense.spent(after(defense, PLAN.rounds))
    assert 0.98 * target <= epsilon <= target
    assert defense.spent(after(defense, 1))[0] < epsilon


def test_a_target_that_no_noise_reaches_is_refused() -> None:
    model = build(MLP(hidden=(3,)), (1, 8, 8), 4, seed=0)
    model.train()
    reason = DPSGD(target_epsilon=1e-9).objection_to_plan(model, PLAN)
    assert reason is not None and "target_epsilon" in reason


def test_noise_is_given_once() -> None:
    with pytest.raises(SettingError, match="give one"):
        DPSGD(noise_multiplier=1.0, target_epsilon=1.0).check()
    DPSGD().check()
    assert DPSGD().sigma(PLAN) == 1.0
    assert DPSGD(noise_multiplier=0.0).sigma(PLAN) == 0.0


def test_the_rate_is_the_share_of_images_in_a_batch() -> None:
    assert PLAN.rate == 0.1
    assert replace(PLAN, batch_size=200).rate == 1.0
