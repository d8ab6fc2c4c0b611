from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedsim.errors import InputError
from fedsim.models import catalog
from fedsim.models.building import build

MNIST = (1, 28, 28)
CIFAR = (3, 32, 32)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def batchnorms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def conv(before: int, after: int, kernel: int) -> int:
    return after * (before * kernel * kernel + 1)


@pytest.mark.parametrize(
    ("settings", "shape", "classes", "count", "norms"),
    [
        # 320 + 9248 + 18496 + 36928 + 73856 + 147584 for the convolutions, 7*7*128 features into 1024 units.
        (catalog.ConvNet6(), MNIST, 10, 286_432 + (6272 + 1) * 1024 + (1024 + 1) * 10, 0),
        # Without padding a 32x32 image ends as 1x1, as in GradAttack's network.
        (
            catalog.ConvNet6(padding=0),
            CIFAR,
            10,
            286_432 + 2 * 32 * 9 + (128 + 1) * 1024 + (1024 + 1) * 10,
            0,
        ),
        # 8*8*12 = 768 features, as in the published DLG network for CIFAR-100.
        (catalog.LeNet(), CIFAR, 100, conv(3, 12, 5) + 2 * conv(12, 12, 5) + 769 * 100, 0),
        (catalog.LeNet(layers=4), MNIST, 10, conv(1, 12, 5) + 3 * conv(12, 12, 5) + (588 + 1) * 10, 0),
        # A side of 32 becomes 17, 9, 9, 9, 5, 5: 25*128 = 3200 features, as in the published network. No biases.
        (
            catalog.CNN6(),
            CIFAR,
            10,
            3 * 12 * 16 + 9 * (12 * 36 + 2 * 36 * 36 + 36 * 64 + 64 * 128) + 3200 * 10,
            0,
        ),
        (catalog.MLP(hidden=(32, 16)), (1, 8, 8), 10, 65 * 32 + 33 * 16 + 17 * 10, 0),
        (catalog.MLP(hidden=()), (1, 8, 8), 10, 65 * 10, 0),
        (catalog.ResNet18(), CIFAR, 10, 11_173_962, 20),
        (catalog.PreActResNet18(), CIFAR, 10, 11_171_274, 17),
    ],
    ids=lambda value: repr(value) if hasattr(value, "build") else None,
)
def test_size_norms_and_output(
    settings: Any, shape: tuple[int, int, int], classes: int, count: int, norms: int
) -> None:
    network = build(settings, shape, classes, seed=0)
    assert parameters(network) == count
    assert batchnorms(network) == norms
    assert settings.batchnorm is bool(norms)
    assert network.training
    assert network(torch.zeros(2, *shape)).shape == (2, classes)


def test_preactivation_ends_without_batchnorm() -> None:
    network = build(catalog.PreActResNet18(), CIFAR, 10, seed=0)
    last = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)][-1]
    assert last == "stages.3.1.bn2"  # inside the last block, before its second convolution


def test_networks_take_other_channels_and_sizes() -> None:
    for settings in (catalog.ResNet18(), catalog.PreActResNet18(), catalog.LeNet(), catalog.CNN6()):
        assert build(settings, (1, 13, 9), 3, seed=0)(torch.zeros(2, 1, 13, 9)).shape == (2, 3)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "gelu", "softplus", "sigmoid", "tanh"])
def test_double_backward_through_every_activation(activation: Any) -> None:
    network = build(catalog.ConvNet6(width=2, hidden=8, activation=activation, pooling="avg"), (1, 8, 8), 3, 0)
    images = torch.randn(2, 1, 8, 8, requires_grad=True)
    gradients = torch.autograd.grad(network(images).square().sum(), list(network.parameters()), create_graph=True)
    (again,) = torch.autograd.grad(torch.cat([g.flatten() for g in gradients]).square().sum(), images)
    assert again.isfinite().all()
    assert again.abs().sum() > 0


def test_nothing_works_in_place() -> None:
    for settings in (catalog.ConvNet6(width=2), catalog.PreActResNet18(), catalog.Torchvision("mobilenet_v2")):
        network = settings.build(CIFAR, 10)
        assert not any(getattr(module, "inplace", False) for module in network.modules())


@pytest.mark.parametrize(
    ("settings", "shape", "says"),
    [
        (catalog.ConvNet6(padding=0), MNIST, "28x28 are too small .* padding = 0; use larger images or padding = 1"),
        (catalog.ConvNet6(), (1, 3, 28), "3x28 are too small .* padding = 1; use larger images, or the models"),
    ],
)
def test_convnet6_refuses_small_images(settings: Any, shape: tuple[int, int, int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        settings.build(shape, 10)


def test_convnet6_takes_the_smallest_image_that_it_says() -> None:
    assert catalog.ConvNet6(width=2).build((1, 4, 4), 3)(torch.zeros(1, 1, 4, 4)).shape == (1, 3)


def test_lenet_weights_are_drawn_as_dlg_draws_them() -> None:
    weights = torch.cat([p.detach().flatten() for p in build(catalog.LeNet(), CIFAR, 10, seed=0).parameters()])
    assert weights.abs().max() <= 0.5
    assert abs(float(weights.std()) - 12**-0.5) < 0.005  # of uniform(-0.5, 0.5)
    plain = build(catalog.LeNet(init="default"), CIFAR, 10, seed=0)
    assert max(float(p.detach().abs().max()) for p in plain.parameters()) < 0.2


def test_kaiming_keeps_the_scale_of_the_signal() -> None:
    images = torch.randn(64, *MNIST)
    spread = {
        init: float(build(catalog.ConvNet6(init=init), MNIST, 10, seed=0)(images).detach().std())
        for init in ("kaiming", "default")
    }
    assert 0.3 < spread["kaiming"] < 3
    assert spread["default"] < 0.1


def test_torchvision_by_name() -> None:
    network = build(catalog.Torchvision("resnet18"), CIFAR, 7, seed=0)
    assert network(torch.zeros(2, *CIFAR)).shape == (2, 7)
    assert catalog.Torchvision("resnet18").batchnorm is None
    assert batchnorms(network) == 20


def test_torchvision_models_with_auxiliary_outputs_return_logits_in_training() -> None:
    network = catalog.Torchvision("googlenet").build((3, 48, 48), 5)
    assert network(torch.zeros(2, 3, 48, 48)).shape == (2, 5)


def test_torchvision_unknown_name() -> None:
    with pytest.raises(InputError, match="'resnet_18'; did you mean 'resnet18'"):
        catalog.Torchvision("resnet_18").build(CIFAR, 10)


def test_torchvision_says_why_images_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"torchvision:resnet18 cannot take images of 1x28x28 .*3 channels"):
        catalog.Torchvision("resnet18").build(MNIST, 10)
