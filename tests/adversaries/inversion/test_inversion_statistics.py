"""The BatchNorm modes: which statistics normalise the guess, and which ones the prior pulls to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedsim import batchnorm
from fedsim.adversaries.base import Observation
from fedsim.adversaries.inversion import objectives, statistics
from fedsim.adversaries.inversion.priors import statistics_distance
from fedsim.adversaries.inversion.step import Knowledge, Plan, Weights, step
from fedsim.errors import InputError
from fedsim.models.loss import cross_entropy

IMAGES = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])
OTHERS = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(1))
MODES = ["exact", "own_statistics", "infer", "proxy"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Conv2d(4, 3, 3),
        nn.BatchNorm2d(3),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    for layer in batchnorm.layers(model).values():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        nn.init.normal_(layer.weight, 1, 0.1)
        nn.init.normal_(layer.bias, 0, 0.1)
    return model


def trained(policy: str) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The gradient of a client under a policy, and its batch statistics."""
    model = network()
    batchnorm.training_mode(model, policy)
    with batchnorm.recording(model) as passes:
        loss = cross_entropy(model(IMAGES), LABELS)
    return list(torch.autograd.grad(loss, list(model.parameters()))), dict(passes[0])


def seen(kind: str) -> Observation:
    """Private or running statistics, in either of the two places where each may stand."""
    _, batch = trained("local")
    running = batchnorm.statistics(network())
    tensors = {
        "granted batch": {f"known/{key.rpartition('.')[2]}/{key.rpartition('.')[0]}": v for key, v in batch.items()},
        "sent batch": {f"sent_buffers/{key}": value for key, value in batch.items()},
        "granted running": {
            f"known/{key.rpartition('.')[2]}/{key.rpartition('.')[0]}": value for key, value in running.items()
        },
        "broadcast running": {f"buffers/{key}": value for key, value in running.items()},
        "nothing": {},
    }[kind]
    return Observation(1, 0, "link", tensors, {})


def attacked(mode: str, kind: str) -> tuple[nn.Module, statistics.Norms]:
    model = network()
    return model, statistics.install(model, mode, seen(kind), torch.device("cpu"))


def objective_at(images: Tensor, mode: str, kind: str, policy: str, prior: float = 0.0) -> float:
    model, norms = attacked(mode, kind)
    gradient, _ = trained(policy)
    plan = Plan(model, norms, objectives.cosine, [1.0] * len(gradient), Weights(statistics=prior))
    knowledge: Knowledge = {
        "parameters": {name: value.detach() for name, value in model.named_parameters()},
        "buffers": {name: value.detach() for name, value in model.named_buffers()},
        "target": gradient,
        "masks": [],
        "labels": LABELS,
        "wanted": list(norms.wanted),
        "features": [],
    }
    return step(plan, knowledge, {"images": images})[0].item()


def pairs(norms: statistics.Norms) -> list[tuple[statistics.Pair, statistics.Pair]]:
    """What the last input's statistics are, and what they should be."""
    return list(zip(norms.take(), norms.wanted, strict=True))


@pytest.mark.parametrize("kind", ["granted batch", "sent batch"])
def test_by_its_own_statistics_the_private_batch_is_a_perfect_match(kind: str) -> None:
    assert objective_at(IMAGES, "own_statistics", kind, "local") == pytest.approx(0, abs=2e-6)
    assert objective_at(OTHERS, "own_statistics", kind, "local") > 0.1


@pytest.mark.parametrize("kind", ["granted batch", "sent batch"])
def test_exact_gives_the_private_batch_its_activations_but_not_quite_its_gradient(kind: str) -> None:
    """Fixed statistics have no derivative by the images, the client's had: a floor that this mode cannot go below."""
    model, _ = attacked("exact", kind)
    client = network().train()
    torch.testing.assert_close(model(IMAGES), client(IMAGES))
    assert 1e-3 < objective_at(IMAGES, "exact", kind, "local") < objective_at(OTHERS, "exact", kind, "local")


@pytest.mark.parametrize("kind", ["granted running", "broadcast running"])
def test_infer_normalises_by_the_guess_and_proxy_by_the_running_statistics(kind: str) -> None:
    assert objective_at(IMAGES, "infer", kind, "local") == pytest.approx(0, abs=2e-6)
    assert objective_at(IMAGES, "proxy", kind, "local") > 0.01


def test_proxy_is_exact_where_the_client_trained_with_frozen_statistics() -> None:
    assert objective_at(IMAGES, "proxy", "broadcast running", "freeze") == pytest.approx(0, abs=2e-6)
    assert objective_at(IMAGES, "infer", "broadcast running", "freeze") > 0.01


def test_exact_and_own_statistics_differ_on_a_wrong_guess_only() -> None:
    exact = objective_at(OTHERS, "exact", "granted batch", "local")
    own = objective_at(OTHERS, "own_statistics", "granted batch", "local")
    assert abs(exact - own) > 1e-4


@pytest.mark.parametrize("mode", ["exact", "own_statistics"])
def test_the_prior_is_zero_at_the_private_batch_and_not_elsewhere(mode: str) -> None:
    model, norms = attacked(mode, "granted batch")
    model(IMAGES)
    assert statistics_distance(pairs(norms)).item() == pytest.approx(0, abs=1e-5)
    model(OTHERS)
    assert statistics_distance(pairs(norms)).item() > 0.05


def test_the_prior_of_infer_is_by_hand_the_distance_to_the_running_statistics() -> None:
    model, norms = attacked("infer", "broadcast running")
    model(OTHERS)
    x = network()[0](OTHERS)
    (first, wanted), _ = pairs(norms)
    torch.testing.assert_close(first[0], x.mean((0, 2, 3)))
    torch.testing.assert_close(first[1], x.var((0, 2, 3), unbiased=False))
    assert torch.equal(wanted[0], batchnorm.statistics(network())["1.running_mean"])


@pytest.mark.parametrize("mode", MODES)
def test_the_prior_counts_by_its_weight_except_for_proxy(mode: str) -> None:
    kind = "granted batch" if mode in ("exact", "own_statistics") else "granted running"
    model, norms = attacked(mode, kind)
    model(OTHERS)
    distance = statistics_distance(pairs(norms)).item() if mode != "proxy" else 0
    without = objective_at(OTHERS, mode, kind, "local")
    assert objective_at(OTHERS, mode, kind, "local", 0.3) == pytest.approx(without + 0.3 * distance, abs=1e-5)
    assert (distance > 0) == (mode != "proxy")


def test_proxy_has_no_prior() -> None:
    model, norms = attacked("proxy", "broadcast running")
    model(OTHERS)
    assert norms.wanted == ()
    assert norms.take() == []


def test_a_layer_without_parameters_scales_by_one_and_shifts_by_nothing() -> None:
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(64, 3)).train()
    model = nn.Sequential(*plain)
    granted = {"known/running_mean/1": torch.zeros(4), "known/running_var/1": torch.ones(4)}
    expected = plain(OTHERS)
    statistics.install(model, "infer", Observation(1, 0, "link", granted, {}), torch.device("cpu"))
    torch.testing.assert_close(model(OTHERS), expected)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert model.double()(OTHERS.double()).dtype == torch.float64


@pytest.mark.parametrize("mode", MODES)
def test_parameters_keep_their_names_and_a_pass_changes_nothing(mode: str) -> None:
    kind = "granted batch" if mode in ("exact", "own_statistics") else "granted running"
    model, _ = attacked(mode, kind)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in network().named_parameters()]
    first = model(OTHERS)
    model(IMAGES)
    assert torch.equal(model(OTHERS), first)


def test_missing_statistics_are_refused_by_layer() -> None:
    with pytest.raises(InputError, match="no statistics of layer '1'"):
        attacked("exact", "nothing")
    with pytest.raises(InputError, match="no statistics of layer '1'"):
        attacked("proxy", "granted batch")
