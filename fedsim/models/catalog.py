"""The models that come with fedsim: their settings. A network itself is imported when it is built.

Every class has `batchnorm` (whether the network has BatchNorm layers; None where only the built network
tells) and `build(shape, classes)`, where shape is (channels, height, width). Build through
`fedsim.models.building.build`, so that the initial weights depend on the seed alone. Networks take normalised
images (N, C, H, W) and return logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fedsim.errors import InputError, suggestion
from fedsim.settings import Count

if TYPE_CHECKING:
    from torch import nn

Activation = Literal["relu", "leaky_relu", "elu", "gelu", "softplus", "sigmoid", "tanh"]


@dataclass(frozen=True)
class ConvNet6:
    """The six-convolution network of "Evaluating Gradient Inversion Attacks and Defenses in Federated
    Learning" (Huang et al., NeurIPS 2021), which GradAttack uses for MNIST. No BatchNorm.

    One deviation: padding 1. Without it, as published, nothing is left of a 28x28 image (28, 26, 24, pool 12,
    10, 8, pool 4, 2, 0); the published code is written for 32x32. `padding = 0` is that network.
    """

    batchnorm: ClassVar[bool | None] = False

    width: Count = 32
    """Channels of the first two convolutions; the later pairs have twice and four times as many."""
    hidden: Count = 1024
    """Units of the fully connected layer."""
    activation: Activation = "relu"
    pooling: Literal["max", "avg"] = "max"
    padding: Literal[0, 1] = 1
    init: Literal["kaiming", "default"] = "kaiming"
    """`kaiming` (He et al. 2015) keeps the signal's scale through ReLU layers; `default` is PyTorch's, with which
    plain SGD hardly moves a network of this depth. FedSGD on mnist5k (10 clients x 8 images, rate 0.01): 58 %
    after 10 rounds and 90 % after 40 with `kaiming`; 10 % after 40 with `default`, at rates of 0.05 and 0.1 too.
    """

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Raises InputError for images on which a feature map would vanish (with padding 1: below 4x4)."""
        from fedsim.models.convnet import convnet6  # imports torch

        return convnet6(
            shape,
            classes,
            width=self.width,
            hidden=self.hidden,
            activation=self.activation,
            pooling=self.pooling,
            padding=self.padding,
            init=self.init,
        )


@dataclass(frozen=True)
class LeNet:
    """The sigmoid LeNet of "Deep Leakage from Gradients" (Zhu et al., NeurIPS 2019). Any image size. No BatchNorm."""

    batchnorm: ClassVar[bool | None] = False

    layers: Literal[3, 4] = 3
    """Convolutions; the published code exists with three and with four."""
    width: Count = 12
    """Channels of each convolution."""
    activation: Activation = "sigmoid"
    init: Literal["dlg", "default"] = "dlg"
    """`dlg` draws weights and biases from uniform(-0.5, 0.5), as that paper's code does; `default` is PyTorch's."""

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        from fedsim.models.lenet import lenet  # imports torch

        return lenet(shape, classes, layers=self.layers, width=self.width, activation=self.activation, init=self.init)


@dataclass(frozen=True)
class MLP:
    """Fully connected layers; with `hidden = []`, logistic regression. Any image size. No BatchNorm."""

    batchnorm: ClassVar[bool | None] = False

    hidden: tuple[Count, ...] = (128,)
    """Units of each hidden layer."""
    activation: Activation = "relu"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        from fedsim.models.mlp import mlp  # imports torch

        return mlp(shape, classes, hidden=self.hidden, activation=self.activation)


@dataclass(frozen=True)
class ResNet18:
    """ResNet-18 with the CIFAR stem (He et al. 2015): post-activation blocks, 20 BatchNorm layers. Any image size."""

    batchnorm: ClassVar[bool | None] = True

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        from fedsim.models.resnet import resnet18  # imports torch

        return resnet18(shape, classes)


@dataclass(frozen=True)
class PreActResNet18:
    """The ResNet-18 that GradAttack attacks: pre-activation blocks (He et al. 2016) behind a CIFAR stem, and
    no BatchNorm after the last of them; 17 BatchNorm layers. Any image size.
    """

    batchnorm: ClassVar[bool | None] = True

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        from fedsim.models.resnet import preact_resnet18  # imports torch

        return preact_resnet18(shape, classes)


@dataclass(frozen=True)
class Torchvision:
    """Any classification model of torchvision, with random weights. `name = "torchvision:resnet18"` in a file."""

    batchnorm: ClassVar[bool | None] = None

    architecture: str
    """A name from `torchvision.models.list_models(module=torchvision.models)`."""

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Raises InputError for an unknown architecture, and for images that it cannot take (most take 3
        channels; some take one size alone).
        """
        from torchvision import models  # imports torch

        from fedsim.models.building import try_out

        known = models.list_models(module=models)
        if self.architecture not in known:
            raise InputError(
                f"torchvision has no classification model called '{self.architecture}'"
                f"{suggestion(self.architecture, known)}"
            )
        # These two would return a tuple in training, with the logits of auxiliary classifiers.
        extra = {"aux_logits": False, "init_weights": True} if self.architecture in _WITH_AUXILIARY else {}
        network: nn.Module = models.get_model(self.architecture, weights=None, num_classes=classes, **extra)
        for module in network.modules():
            if hasattr(module, "inplace"):  # double backward and Opacus need activations that are not in place
                module.inplace = False  # type: ignore[assignment]
        try_out(network, shape, classes, f"torchvision:{self.architecture}")
        return network


_WITH_AUXILIARY = frozenset({"googlenet", "inception_v3"})
