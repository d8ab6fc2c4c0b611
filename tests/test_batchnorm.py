from __future__ import annotations

import pytest
import torch
from torch import nn

from fedsim import batchnorm


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6), nn.BatchNorm1d(6)
    )


IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_counters_are_never_among_the_statistics() -> None:
    assert set(batchnorm.statistics(network())) == {
        "1.running_mean",
        "1.running_var",
        "5.running_mean",
        "5.running_var",
    }


def test_recording_gives_the_biased_statistics_of_each_pass() -> None:
    model = network().train()
    with batchnorm.recording(model) as passes:
        model(IMAGES)
        model(IMAGES[:2])
    inside = model[0](IMAGES)
    assert len(passes) == 2
    torch.testing.assert_close(passes[0]["1.mean"], inside.mean((0, 2, 3)))
    torch.testing.assert_close(passes[0]["1.var"], inside.var((0, 2, 3), unbiased=False))
    assert set(passes[0]) == batchnorm.expected_keys("share_batch", model)
    model(IMAGES)
    assert len(passes) == 2, "hooks must be gone after the block"


def test_group_norm_leaves_no_batchnorm_and_keeps_the_weights() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6))
    nn.init.uniform_(model[1].weight)
    weight = model[1].weight.detach().clone()
    changed = batchnorm.apply_policy(model, "group_norm")
    assert not batchnorm.layers(changed)
    assert isinstance(changed[1], nn.GroupNorm)
    assert changed[1].num_groups == 6
    assert torch.equal(changed[1].weight, weight)
    assert not list(changed.buffers())


def test_freeze_normalises_by_the_given_statistics_in_training_and_does_not_move_them() -> None:
    model = network()
    model[1].running_mean.fill_(0.5)
    before = batchnorm.statistics(model)
    batchnorm.training_mode(model, "freeze")
    out = model[:2](IMAGES)
    expected = (model[0](IMAGES) - 0.5) / torch.sqrt(torch.tensor(1 + model[1].eps))
    torch.testing.assert_close(out, expected)
    assert all(torch.equal(before[key], value) for key, value in batchnorm.statistics(model).items())


@pytest.mark.parametrize(
    ("policy", "sends", "is_sent"),
    [
        ("share_batch", {"1.mean", "1.var", "5.mean", "5.var"}, True),
        ("share_running", {"1.running_mean", "1.running_var", "5.running_mean", "5.running_var"}, True),
        ("local", set(), False),
        ("freeze", set(), True),
    ],
)
def test_what_travels_under_each_policy(policy: str, sends: set[str], is_sent: bool) -> None:
    model = network()
    batchnorm.training_mode(model, policy)
    with batchnorm.recording(model) as passes:
        model(IMAGES)
    assert set(batchnorm.sent(policy, model, passes)) == sends == batchnorm.expected_keys(policy, model)
    assert bool(batchnorm.broadcast(policy, batchnorm.statistics(model))) is is_sent


def test_share_running_is_averaged_by_examples() -> None:
    running = {"1.running_mean": torch.zeros(2)}
    replies = [{"1.running_mean": torch.tensor([1.0, 0.0])}, {"1.running_mean": torch.tensor([4.0, 8.0])}]
    out = batchnorm.aggregate("share_running", running, replies, examples=[3, 1], steps=[1, 1])
    assert out["1.running_mean"].tolist() == [1.75, 2.0]


def test_share_batch_moves_the_running_statistics_as_torch_would() -> None:
    running = {"1.running_mean": torch.tensor([1.0])}
    replies = [{"1.mean": torch.tensor([3.0])}, {"1.mean": torch.tensor([5.0])}]
    once = batchnorm.aggregate("share_batch", running, replies, examples=[1, 1], steps=[1, 1])
    assert once["1.running_mean"].item() == pytest.approx(0.9 * 1 + 0.1 * 4)
    thrice = batchnorm.aggregate("share_batch", running, replies, examples=[1, 1], steps=[3, 3])
    assert thrice["1.running_mean"].item() == pytest.approx(0.9**3 * 1 + (1 - 0.9**3) * 4)


@pytest.mark.parametrize("policy", ["local", "freeze", "group_norm"])
def test_other_policies_never_move_the_servers_statistics(policy: str) -> None:
    running = {"1.running_mean": torch.tensor([1.0])}
    assert batchnorm.aggregate(policy, running, [{}], [1], [1]) == running


def test_the_server_tests_a_local_model_by_the_batchs_own_statistics() -> None:
    model = network()
    model[1].running_mean.fill_(100.0)
    batchnorm.testing_mode(model, "local")
    out = model[:2](IMAGES)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    assert not model[2].training


def test_a_model_that_was_put_to_test_is_put_to_train_again() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    batchnorm.training_mode(model, "share_running")
    model[1].eval()
    batchnorm.training_mode(model, "share_running", tuple(model.modules()))
    assert model[1].training
