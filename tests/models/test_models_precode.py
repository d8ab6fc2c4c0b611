from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedsim import batchnorm
from fedsim.models import catalog, precode
from fedsim.models.building import build
from fedsim.models.loss import cross_entropy, regulariser, training_loss
from fedsim.models.precode import Bottleneck

SHAPE = (1, 8, 8)
MODELS: dict[str, tuple[Any, Any, str]] = {
    # without, with 6 units, the last layer
    "convnet6": (catalog.ConvNet6(width=2, hidden=8), catalog.ConvNet6(width=2, hidden=8, bottleneck=6), "fc2"),
    "lenet": (catalog.LeNet(width=2), catalog.LeNet(width=2, bottleneck=6), "fc"),
    "mlp": (catalog.MLP(hidden=(8,)), catalog.MLP(hidden=(8,), bottleneck=6), "fc2"),
    "regression": (catalog.MLP(hidden=()), catalog.MLP(hidden=(), bottleneck=6), "fc1"),
    "resnet18": (catalog.ResNet18(), catalog.ResNet18(bottleneck=6), "linear"),
    "preact_resnet18": (catalog.PreActResNet18(), catalog.PreActResNet18(bottleneck=6), "linear"),
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy(seed: int = 0, beta: float = 1e-3) -> nn.Module:
    """An MLP of 64, 8 and 5 numbers with a bottleneck of 6 units, its noise seeded."""
    model = build(catalog.MLP(hidden=(8,), activation="tanh", bottleneck=6, bottleneck_beta=beta), SHAPE, 5, seed=0)
    precode.seed(model, rng(seed))
    return model


def images(count: int = 4) -> Tensor:
    return torch.randn(count, *SHAPE, generator=rng(9))


@pytest.mark.parametrize("name", MODELS)
def test_it_stands_in_front_of_the_last_layer_and_changes_no_other(name: str) -> None:
    without, with_it, last = MODELS[name]
    plain, extended = build(without, SHAPE, 5, seed=0), build(with_it, SHAPE, 5, seed=0)
    width = plain.get_submodule(last).in_features
    before, after = plain.state_dict(), extended.state_dict()
    new = {f"bottleneck.{layer}.{part}" for layer in ("encoder", "decoder") for part in ("weight", "bias")}
    assert set(after) - set(before) == new
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert after["bottleneck.encoder.weight"].shape == (12, width)
    assert after["bottleneck.decoder.weight"].shape == (width, 6)
    names = [key for key, _ in extended.named_parameters()]
    assert names[-6:] == [*(f"bottleneck.{one}" for one in ("encoder.weight", "encoder.bias")), *names[-4:]]
    assert names[-2:] == [f"{last}.weight", f"{last}.bias"]
    # It is passed on the way, not only listed.
    reached: list[Tensor] = []
    precode.seed(extended, rng())
    extended.get_submodule("bottleneck").register_forward_hook(lambda module, x, y: reached.append(y))
    extended.get_submodule(last).register_forward_pre_hook(lambda module, x: reached.append(x[0]))
    assert extended(images(2)).shape == (2, 5)
    assert reached[0] is reached[1]


def test_no_units_no_bottleneck() -> None:
    model = build(catalog.MLP(), SHAPE, 5, seed=0)
    assert precode.bottlenecks(model) == {}
    assert precode.parameters_behind(model) == set()
    precode.seed(model, rng())  # nothing happens
    model(images())
    assert regulariser(model) is None


def test_networks_without_a_place_for_one_are_refused() -> None:
    with pytest.raises(TypeError, match="VisionTransformer keeps no place"):
        precode.insert(build(catalog.ViT(dim=12, heads=2, depth=1), SHAPE, 5, seed=0), 6)
    with pytest.raises(TypeError, match="no fully connected layer"):
        precode.insert(nn.Sequential(nn.Conv2d(1, 2, 3)), 6)


@pytest.mark.parametrize("name", ["convnet6", "resnet18"])
def test_what_is_behind_it_is_told_by_name(name: str) -> None:
    """Also once BatchNorm layers have been replaced, as an attack does."""
    _, settings, last = MODELS[name]
    model = batchnorm.apply_policy(build(settings, SHAPE, 5, seed=0), "group_norm")
    behind = precode.parameters_behind(model)
    assert behind == {key for key, _ in model.named_parameters() if key.startswith(("bottleneck.", f"{last}."))}
    assert len(behind) == 6


@pytest.mark.parametrize("policy", ["share_batch", "share_running", "local", "freeze", "group_norm"])
def test_it_lives_with_every_policy_of_batchnorm(policy: str) -> None:
    model = batchnorm.apply_policy(build(catalog.ResNet18(bottleneck=6), SHAPE, 5, seed=0), policy)
    batchnorm.training_mode(model, policy)
    precode.seed(model, rng())
    assert training_loss(model, model(images(2)), torch.tensor([1, 2])).isfinite()
    batchnorm.testing_mode(model, policy)
    assert torch.equal(model(images(2)), model(images(2)))


def test_training_draws_from_the_given_generator_and_nowhere_else() -> None:
    shared = torch.get_rng_state()
    first, same, other = noisy(1)(images()), noisy(1)(images()), noisy(2)(images())
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)
    model = noisy(1)
    assert not torch.allclose(model(images()), model(images()))
    assert torch.equal(shared, torch.get_rng_state())


def test_the_code_is_mean_plus_std_times_noise() -> None:
    model, x = Bottleneck(5, 3), torch.randn(7, 5, generator=rng(4))
    statistics = model.encoder(x)
    mean, std = statistics[:, :3], (1 + statistics[:, 3:].exp()).log()
    precode.seed(model, rng(6))
    expected = model.decoder(mean + std * torch.randn(7, 3, generator=rng(6)))
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model.eval()(x), model.decoder(mean))


def test_a_seed_gives_the_same_noise_in_every_precision() -> None:
    model = noisy(3)
    single = model(images())
    precode.seed(model.double(), rng(3))
    torch.testing.assert_close(model(images().double()).float(), single)


def test_training_without_a_generator_is_refused() -> None:
    model = build(catalog.MLP(bottleneck=6), SHAPE, 5, seed=0)
    with pytest.raises(RuntimeError, match=r"no generator .* fedsim\.models\.precode\.seed\(model, generator\)"):
        model(images())
    assert model.eval()(images()).shape == (4, 5)


def test_evaluation_is_deterministic() -> None:
    model = noisy().eval()
    assert torch.equal(model(images()), model(images()))


def test_the_divergence_is_that_of_normal_distributions() -> None:
    mean, std = torch.randn(5, 3, generator=rng(1)), torch.rand(5, 3, generator=rng(2)) + 0.1
    one, other = torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(one, other).sum(1).mean()
    torch.testing.assert_close(precode.divergence(mean, std), expected)
    # By hand: (4 + 9 - 1) / 2 - ln 3, and 0 for the second unit.
    by_hand = precode.divergence(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 1.0]]))
    assert float(by_hand) == pytest.approx(6 - math.log(3))


def test_a_std_that_underflows_spoils_no_gradient() -> None:
    raw = torch.tensor([[-500.0, 0.0]], requires_grad=True)
    value = precode.divergence(torch.zeros(1, 2), nn.functional.softplus(raw))
    assert value.isfinite()
    (slope,) = torch.autograd.grad(value, raw)
    assert slope.isfinite().all()


def test_the_loss_is_cross_entropy_plus_beta_times_the_divergence() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    model = noisy(beta=0.5)
    logits = model(images())
    features = model[2](model[1](model[0](images())))
    mean, raw = model.bottleneck.encoder(features).chunk(2, 1)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, nn.functional.softplus(raw)), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(
        training_loss(model, logits, labels), cross_entropy(logits, labels) + 0.5 * kl.sum(1).mean()
    )


def test_a_penalty_is_read_once_after_a_pass() -> None:
    model = noisy()
    model(images())
    assert regulariser(model) is not None
    with pytest.raises(RuntimeError, match="there was none"):
        regulariser(model)
    free = noisy(beta=0.0)
    free(images())
    assert regulariser(free) is None


def test_the_gradient_of_the_whole_loss_agrees_with_finite_differences() -> None:
    model = noisy(beta=0.1).double()
    x, labels = images().double(), torch.tensor([0, 1, 2, 3])
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(*values: Tensor) -> Tensor:
        precode.seed(model, rng(5))  # the same noise every time
        given = dict(zip(parameters, values, strict=True))
        return training_loss(model, functional_call(model, given, (x,)), labels)

    leaves = [value.clone().requires_grad_() for value in parameters.values()]
    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)
    slope = torch.autograd.grad(loss(*leaves), leaves[list(parameters).index("bottleneck.encoder.bias")])[0]
    nudged = {name: value.clone() for name, value in parameters.items()}
    for unit in (0, 7):  # of a mean, and of a standard deviation
        ends = []
        for step in (1e-6, -1e-6):
            nudged["bottleneck.encoder.bias"] = parameters["bottleneck.encoder.bias"].clone()
            nudged["bottleneck.encoder.bias"][unit] += step
            ends.append(float(loss(*nudged.values())))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(slope[unit]), rel=1e-5, abs=1e-8)


def test_transforms_give_the_same_and_leave_nothing_behind() -> None:
    model, x, labels = noisy(beta=0.1).eval(), images(), torch.tensor([0, 1, 2, 3])
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(given: dict[str, Tensor], own: Tensor, of: Tensor) -> Tensor:
        return training_loss(model, functional_call(model, given, (own[None],)), of[None])

    each = vmap(grad(loss), (None, 0, 0))(parameters, x, labels)
    assert model.bottleneck._penalty is None
    whole = torch.autograd.grad(training_loss(model, model(x), labels), list(model.parameters()))
    for mean, expected in zip(each.values(), whole, strict=True):
        torch.testing.assert_close(mean.mean(0), expected)
    # In training each example gets noise of its own, as torch has it: vmap says how to draw.
    each = vmap(grad(loss), (None, 0, 0), randomness="different")(parameters, x, labels)
    precode.seed(model.train(), rng(3))
    drawn = vmap(grad(loss), (None, 0, 0), randomness="different")(parameters, x, labels)
    assert not torch.allclose(drawn["fc2.bias"], each["fc2.bias"])
    assert len({tuple(row.tolist()) for row in drawn["fc2.bias"]}) == 4


def test_neither_generator_nor_penalty_is_saved_or_copied() -> None:
    model = noisy()
    model(images())  # leaves a penalty with a graph, which could not be copied
    copied = copy.deepcopy(model)
    assert copied.bottleneck.generator is None
    assert copied.bottleneck._penalty is None
    assert model.bottleneck.generator is not None
    assert regulariser(model) is not None
    assert not [key for key in model.state_dict() if "generator" in key or "penalty" in key]
    assert not list(model.buffers())


def test_which_gradients_the_noise_enters() -> None:
    """As `parameters_behind` says: the names, and what becomes of each gradient if the predictions do not change."""
    model = build(catalog.MLP(hidden=(8,), bottleneck=6, bottleneck_beta=0.0), SHAPE, 5, seed=0)
    behind = precode.parameters_behind(model)
    assert behind == {
        *(f"bottleneck.{layer}.{part}" for layer in ("encoder", "decoder") for part in ("weight", "bias")),
        *("fc2.weight", "fc2.bias"),
    }
    kept = {"bottleneck.encoder.weight", "bottleneck.encoder.bias"}
    assert precode.parameters_behind(model, encoder=False) == behind - kept
    # With labels so far off, the error of the predictions is the same for every noise.
    with torch.no_grad():
        model.fc2.bias.copy_(torch.tensor([60.0, 0, 0, 0, 0]))

    def gradients(seed: int) -> dict[str, Tensor]:
        precode.seed(model, rng(seed))
        loss = training_loss(model, model(images(1)), torch.tensor([1]))
        return dict(
            zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True)
        )

    one, other = gradients(1), gradients(2)
    gap = {name: float((one[name] - other[name]).norm() / one[name].norm()) for name in one}
    assert max(gap[name] for name in ("fc2.bias", "bottleneck.decoder.bias")) < 1e-5
    assert min(gap[name] for name in ("fc2.weight", "bottleneck.decoder.weight")) > 0.01
    rows = one["bottleneck.encoder.weight"] - other["bottleneck.encoder.weight"]
    assert rows[:6].abs().max() < 1e-6 < 1e-4 < rows[6:].abs().max()
    # In front of it the noise has a part too, but a row of a weight gradient is still a multiple of the image.
    assert gap["fc1.weight"] > 0.01
    image = images(1).flatten()
    for gradient in (one, other):
        row = gradient["fc1.weight"][gradient["fc1.bias"].abs().argmax()]
        assert float(torch.cosine_similarity(row, image, dim=0).abs()) > 0.99999
