from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsim.adversaries.base import Job, Observation, Reconstruction, Situation
from fedsim.adversaries.inversion.closed_form import rgap, rgap_head, rgap_layers, rgap_solve
from fedsim.adversaries.inversion.recipes.r_gap import RGap
from fedsim.data.dataset import Normalisation
from fedsim.errors import InputError
from fedsim.models.building import build
from fedsim.models.catalog import CNN6, MLP, ConvNet6, LeNet, PreActResNet18
from fedsim.models.loss import cross_entropy

ONE = Situation("cnn6", False, "local", "fedsgd", True, (1,))


def attack(seen: Any, **settings: Any) -> Reconstruction:
    (job,) = RGap(**settings).capture(seen)
    assert isinstance(job, Job)
    return RGap(**settings).attack(job, torch.device("cpu"), torch.Generator())


def psnr(found: Reconstruction, images: torch.Tensor) -> float:
    assert found.images is not None
    return float(-10 * (found.images - images).square().mean().log10())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.Conv2d(2, 3, (4, 3), stride=(1, 2), padding=(2, 0), bias=False),
        nn.Conv2d(2, 3, 2, padding="same", dilation=3),
        nn.Conv2d(2, 3, 3, padding="valid"),
    ],
    ids=str,
)
def test_a_convolution_as_a_matrix_and_its_gradient_as_a_linear_map(layer: nn.Conv2d) -> None:
    layer = layer.double()
    x = torch.randn(1, 2, 7, 5, dtype=torch.float64)
    slope = torch.randn_like(layer(x))
    (gradient,) = torch.autograd.grad((layer(x) * slope).sum(), [layer.weight])
    operator = rgap_layers.convolution(layer, layer.weight, layer.bias, (2, 7, 5))
    assert operator.after == layer(x).shape[1:]
    assert operator.unknowns == 70
    output = operator.matrix @ x.flatten().numpy() + operator.shift
    assert np.allclose(output, layer(x).detach().flatten().numpy())
    by_channel = operator.gradient_block(slope.flatten().numpy()) @ x.reshape(2, 35).numpy().T
    assert np.allclose(by_channel, operator.gradient_rows(gradient))


def test_the_gradient_block_by_hand() -> None:
    # A kernel of two taps over three pixels: dW = [k0 x0 + k1 x1, k0 x1 + k1 x2].
    layer = nn.Conv2d(1, 1, (1, 2), bias=False)
    operator = rgap_layers.convolution(layer, layer.weight, None, (1, 1, 3))
    assert operator.gradient_block(np.array([2.0, 5.0])).tolist() == [[2, 5, 0], [0, 2, 5]]


@pytest.mark.parametrize("module", [nn.LeakyReLU(0.2), nn.Sigmoid(), nn.Tanh(), nn.Identity()], ids=str)
def test_activations_are_undone(module: nn.Module) -> None:
    z = torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True)
    values = module(z)
    (slope,) = torch.autograd.grad(values.sum(), z)
    how = rgap_layers.activation(module)
    assert how is not None
    before, derivative, outside = how.undo(values.detach().numpy())
    assert np.allclose(before, z.detach().numpy())
    assert np.allclose(derivative, slope.numpy())
    assert outside == 0


def test_values_that_an_activation_never_gives_are_moved_into_its_range() -> None:
    how = rgap_layers.activation(nn.Sigmoid())
    assert how is not None
    before, _, outside = how.undo(np.array([1.5, 0.5, -0.1]))
    assert outside == 2
    assert before.tolist() == pytest.approx([-np.log(1e-12), 0, np.log(1e-12)], rel=1e-4)


def test_a_relu_is_undone_where_it_is_alive() -> None:
    how = rgap_layers.activation(nn.ReLU())
    assert how is not None
    before, derivative, dead = how.undo(np.array([3.0, 1e-9, -1e-9]))
    assert (before[0], derivative.tolist(), dead) == (3, [1, 0, 0], 2)


def test_what_cannot_be_undone() -> None:
    assert rgap_layers.activation(nn.GELU()) is None
    assert rgap_layers.activation(nn.LeakyReLU(-0.1)) is None


def slope_of(weight: np.ndarray, features: np.ndarray, label: int) -> np.ndarray:
    powers = np.exp(weight @ features)
    return np.asarray(powers / powers.sum() - np.eye(len(weight))[label])


def test_the_head_by_its_bias() -> None:
    # Three logits of 0 have probabilities of 1/3: d = (1/3, -2/3, 1/3) of the label 1, and dW = d a^T.
    slope, features = np.array([1, -2, 1]) / 3, np.array([4.0, -1.0])
    (head,) = rgap_head.from_bias(np.zeros((3, 2)), np.zeros(3), np.outer(slope, features), slope)
    assert head.features.tolist() == pytest.approx([4, -1])
    assert head.target.tolist() == pytest.approx([0, 1, 0])
    assert head.label == 1
    assert head.misfit < 1e-12


@pytest.mark.parametrize("classes", [3, 10, 100])
@pytest.mark.parametrize("size", [0.01, 1.0, 3.0])
def test_the_head_without_a_bias_finds_the_scale(classes: int, size: float) -> None:
    rng = np.random.default_rng(classes)
    weight, features = rng.normal(size=(classes, 6)), size * rng.normal(size=6)
    slope = slope_of(weight, features, 2)
    found = rgap_head.from_weight(weight, np.outer(slope, features))
    assert found[0].label == 2
    assert found[0].features == pytest.approx(features, rel=1e-6)
    assert found[0].slope == pytest.approx(slope, rel=1e-6)


def test_two_classes_have_two_scales_that_fit() -> None:
    # d = (-p, p) with p = 1 / (1 + e^m): the gradient is fixed by m / (1 + e^m), which m = 2 shares with m = 0.7362.
    weight, features = np.array([[1.0], [0.0]]), np.array([2.0])
    found = rgap_head.from_weight(weight, np.outer(slope_of(weight, features, 0), features))
    assert sorted(float(head.features[0]) for head in found if head.label == 0) == pytest.approx([0.73619, 2], abs=1e-4)
    small, large = (m / (1 + np.exp(m)) for m in (0.73619, 2))
    assert small == pytest.approx(large, abs=1e-4)


def test_a_layer_is_solved_by_both_kinds_of_equations() -> None:
    # One weight constraint for two unknowns, x0 = 3; the gradient of k = 2 says 2 x = (6, 8).
    operator = rgap_layers.linear(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0]))
    one = np.ones(1)
    solved = rgap_solve.solve(operator, 4 * one, one, 2 * one, torch.tensor([[6.0, 8.0]]), 1e-13, True)
    assert solved.values.tolist() == pytest.approx([3, 4])
    assert (solved.rank, solved.equations) == (2, 3)
    assert solved.residual < 1e-12
    # Without any slope only the weight constraint is left: the smallest solution.
    alone = rgap_solve.solve(operator, 4 * one, one, 0 * one, torch.zeros(1, 2), 1e-13, True)
    assert alone.values.tolist() == pytest.approx([3, 0])
    assert (alone.rank, alone.equations) == (1, 1)
    with pytest.raises(InputError, match="no equation is left"):
        rgap_solve.solve(operator, one, 0 * one, 0 * one, torch.zeros(1, 2), 1e-13, True)


def test_a_small_gradient_counts_as_much_as_the_weights() -> None:
    # The weight constraint on x1 is weak and off by 1e-4, so that it says 2 where 1 is true. The gradient is exact, but
    # of size 1e-6: stacked as they are, the weight constraint would win.
    operator = rgap_layers.linear(torch.tensor([[1.0, 0.0], [0.0, 1e-4]]), None)
    slope, truth = np.array([1e-6, 1e-6]), torch.ones(2)
    gradient = torch.outer(torch.from_numpy(slope), truth.double())
    solved = rgap_solve.solve(operator, np.array([1.0, 2e-4]), np.ones(2), slope, gradient, 1e-13, False)
    assert solved.values.tolist() == pytest.approx([1, 1], abs=1e-6)
    assert solved.rank is None


def test_the_rank_index_by_hand() -> None:
    # From the last to the first of three operators; the third, the last layer's, is not listed.
    layers = ({"rank": 4, "unknowns": 7}, {"rank": 10, "unknowns": 12})
    assert rgap.rank_index(layers, 3) == pytest.approx(-2 * 3 / 3 - 3 * 2 / 3)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cnn6", CNN6()),
        ("cnn6", CNN6(bias=True)),
        ("lenet", LeNet()),
        ("lenet", LeNet(layers=4, activation="tanh", init="default")),
        ("mlp", MLP(hidden=(32, 16), activation="leaky_relu")),
        ("mlp", MLP(hidden=(32,), activation="relu")),
        ("mlp", MLP(hidden=())),
    ],
    ids=repr,
)
def test_an_image_comes_back(victim_of: Any, name: str, settings: Any) -> None:
    seen, batch = victim_of(1, settings, name)
    found = attack(seen)
    assert psnr(found, batch.images) > 80
    assert found.labels is not None
    assert torch.equal(found.labels, batch.labels)
    assert found.objective < 1e-4
    assert found.status == "done"
    assert found.notes["underdetermined"] == []
    assert found.notes["rank_index"] == 0
    assert all(one["residual"] < 1e-4 for one in found.notes["layers"])


def test_one_step_of_fedavg_is_a_gradient(victim_of: Any) -> None:
    seen, batch = victim_of(1, LeNet(), "lenet", algorithm="fedavg", learning_rate=1.0)
    assert psnr(attack(seen, rank_report=False), batch.images) > 80
    # At the rate 0.5 the same update is of a gradient twice as large, which no image has.
    other, _ = victim_of(1, LeNet(), "lenet", algorithm="fedavg", learning_rate=0.5)
    assert attack(other, rank_report=False).objective > 0.1


def test_the_rank_analysis_names_the_layer_that_leaves_its_input_open(victim_of: Any) -> None:
    seen, batch = victim_of(1, CNN6(channels=(12, 2, 8, 8, 8, 8)), "cnn6")
    found = attack(seen)
    assert "conv2" in found.notes["underdetermined"]
    assert found.notes["rank_index"] < 0
    assert found.status == "underdetermined"
    assert found.objective > 0.01
    assert psnr(found, batch.images) < 40


def test_with_two_classes_and_no_biases_two_images_have_the_same_gradient(victim_of: Any) -> None:
    seen, batch = victim_of(1, CNN6(), "cnn6")
    settings = CNN6()
    model = build(settings, (1, 8, 8), 2, seed=0)
    own = dict(model.named_parameters())
    loss = cross_entropy(model(Normalisation((0.3,), (0.4,))(batch.images)), torch.tensor([1]))
    tensors = {f"model/{name}": value.detach() for name, value in own.items()}
    slopes = torch.autograd.grad(loss, list(own.values()))
    tensors |= {f"update/{name}": value for name, value in zip(own, slopes, strict=True)}
    facts = {**seen.facts, "classes": 2, "model": {"name": "cnn6", "settings": dataclasses.asdict(settings)}}
    found = attack(Observation(1, 0, "link", tensors, facts), rank_report=False)
    # The other image is this one, larger, and so out of the range of pixels: clipped, it has another gradient.
    assert len(found.notes["candidates"]) >= 2
    assert psnr(found, batch.images) > 80


def test_a_gradient_that_says_nothing_is_refused(victim_of: Any) -> None:
    seen, _ = victim_of(1, CNN6(), "cnn6")
    silent = {name: torch.zeros_like(value) if "update" in name else value for name, value in seen.tensors.items()}
    with pytest.raises(InputError, match="'fc', is zero or not finite"):
        attack(type(seen)(seen.round, seen.client, seen.vantage, silent, seen.facts))


def test_more_than_one_image_is_refused(victim_of: Any) -> None:
    seen, _ = victim_of(2, CNN6(), "cnn6")
    with pytest.raises(InputError, match="made from 2; set batch_size to 1"):
        attack(seen)


def test_too_large_a_layer_is_refused() -> None:
    model = CNN6().build((3, 128, 128), 10)
    with pytest.raises(InputError, match="'conv1' has 49152 inputs"):
        rgap.operators(rgap.chain(model) or [], dict(model.named_parameters()), (3, 128, 128))


def test_objections_before_the_first_round() -> None:
    attacker = RGap()
    assert attacker.objection(ONE) is None
    several = attacker.objection(Situation("cnn6", False, "local", "fedsgd", True, (1, 4)))
    assert several is not None
    assert "batch_size is 4" in several
    steps = attacker.objection(Situation("cnn6", False, "local", "fedavg", False, (1,)))
    assert steps is not None
    assert "several local steps" in steps


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (CNN6().build((3, 8, 8), 10), None),
        (LeNet().build((1, 8, 8), 10), None),
        (nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh()), nn.Flatten(), nn.Linear(72, 3)), None),
        (ConvNet6().build((1, 8, 8), 10), r"layer 4 \('.*', MaxPool2d\) cannot be inverted; use the model cnn6"),
        (MLP(activation="gelu").build((1, 8, 8), 10), r"layer 2 \('act1', GELU\) cannot be inverted"),
        (PreActResNet18().build((3, 8, 8), 10), "is none; use the model cnn6, lenet or mlp"),
        (nn.Sequential(nn.Conv2d(2, 2, 1, groups=2), nn.Flatten(), nn.Linear(4, 2)), r"layer 0 .* has groups"),
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.Linear(4, 2)), r"layer 1 .* does not come after nn.Flatten"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Tanh()), "the last layer is not linear"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_objections_to_a_model(model: nn.Module, says: str | None) -> None:
    found = RGap().objection_to(model, ONE)
    if says is None:
        assert found is None
    else:
        with pytest.raises(ValueError, match=says):
            raise ValueError(found)


def test_nested_layers_keep_their_names() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh()), nn.Flatten(), nn.Linear(72, 3))
    assert [name for name, _ in rgap.chain(model) or []] == ["0.0", "0.1", "1", "2"]


def test_the_objective_is_the_distance_of_gradients() -> None:
    # Half of the gradient of an image is as far from the whole as it is long.
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    own = dict(model.named_parameters())
    image = torch.rand(1, 1, 2, 2)
    loss = functional.cross_entropy(model(image), torch.tensor([1]))
    gradient = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
    whole = {name: value.detach() for name, value in own.items()}
    target = np.array([0.0, 1.0, 0.0])
    assert rgap.mismatch(model, whole, gradient, image.double(), target) < 1e-6
    half = {name: value / 2 for name, value in gradient.items()}
    assert rgap.mismatch(model, whole, half, image.double(), target) == pytest.approx(1, abs=1e-5)
