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
from fedsim.settings import Count, Index, NonNegative, Positive

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
    bottleneck: Index = 0
    """Units of PRECODE's variational bottleneck in front of the last layer (see `fedsim.models.precode`); 0: none. The
    paper's has 256."""
    bottleneck_beta: NonNegative = 1e-3
    """The weight of its Kullback-Leibler divergence in the training loss."""

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Raises InputError for images on which a feature map would vanish (with padding 1: below 4x4)."""
        from fedsim.models import precode  # imports torch
        from fedsim.models.convnet import convnet6

        network = convnet6(
            shape,
            classes,
            width=self.width,
            hidden=self.hidden,
            activation=self.activation,
            pooling=self.pooling,
            padding=self.padding,
            init=self.init,
        )
        return precode.insert(network, self.bottleneck, self.bottleneck_beta)


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
    bottleneck: Index = 0
    """As of convnet6."""
    bottleneck_beta: NonNegative = 1e-3
    """As of convnet6."""

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        from fedsim.models import precode  # imports torch
        from fedsim.models.lenet import lenet

        network = lenet(
            shape, classes, layers=self.layers, width=self.width, activation=self.activation, init=self.init
        )
        return precode.insert(network, self.bottleneck, self.bottleneck_beta)


@dataclass(frozen=True)
class CNN6:
    """The network that R-GAP (Zhu, Blaschko, ICLR 2021) is shown on: six strided convolutions with LeakyReLU(0.2), then
    one linear layer. Any image size. No BatchNorm.

    For up to three channels the equations of each layer (weights and gradient) are at least as many as its inputs, so
    that one image's gradient determines the image.
    """

    batchnorm: ClassVar[bool | None] = False

    channels: tuple[Count, Count, Count, Count, Count, Count] = (12, 36, 36, 36, 64, 128)
    """Of the six convolutions. The paper's CNN6-d, which gives away less, has 20 in the second place."""
    bias: bool = False
    """Whether the layers have biases; the paper's have none."""

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        from fedsim.models.cnn6 import cnn6  # imports torch

        return cnn6(shape, classes, channels=self.channels, bias=self.bias)


@dataclass(frozen=True)
class MLP:
    """Fully connected layers; with `hidden = []`, logistic regression. Any image size. No BatchNorm."""

    batchnorm: ClassVar[bool | None] = False

    hidden: tuple[Count, ...] = (128,)
    """Units of each hidden layer."""
    activation: Activation = "relu"
    bottleneck: Index = 0
    """As of convnet6."""
    bottleneck_beta: NonNegative = 1e-3
    """As of convnet6."""

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        from fedsim.models import precode  # imports torch
        from fedsim.models.mlp import mlp

        network = mlp(shape, classes, hidden=self.hidden, activation=self.activation)
        return precode.insert(network, self.bottleneck, self.bottleneck_beta)


@dataclass(frozen=True)
class ResNet18:
    """ResNet-18 with the CIFAR stem (He et al. 2015): post-activation blocks, 20 BatchNorm layers. Any image size."""

    batchnorm: ClassVar[bool | None] = True

    bottleneck: Index = 0
    """As of convnet6."""
    bottleneck_beta: NonNegative = 1e-3
    """As of convnet6."""

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        from fedsim.models import precode  # imports torch
        from fedsim.models.resnet import resnet18

        return precode.insert(resnet18(shape, classes), self.bottleneck, self.bottleneck_beta)


@dataclass(frozen=True)
class PreActResNet18:
    """The ResNet-18 that GradAttack attacks: pre-activation blocks (He et al. 2016) behind a CIFAR stem, and
    no BatchNorm after the last of them; 17 BatchNorm layers. Any image size.
    """

    batchnorm: ClassVar[bool | None] = True

    bottleneck: Index = 0
    """As of convnet6."""
    bottleneck_beta: NonNegative = 1e-3
    """As of convnet6."""

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        from fedsim.models import precode  # imports torch
        from fedsim.models.resnet import preact_resnet18

        return precode.insert(preact_resnet18(shape, classes), self.bottleneck, self.bottleneck_beta)


@dataclass(frozen=True)
class ViT:
    """A small vision transformer (Dosovitskiy et al., ICLR 2021) for small images: patches, a class token, a learned
    position embedding. LayerNorm instead of BatchNorm; no dropout. Images whose sides are multiples of `patch`.

    With the defaults it is a standard one. The paper of the attack `april` breaks a network without a residual
    connection and without a LayerNorm between embedding and attention: `norm = "post"` and `first_skip = false`.
    """

    batchnorm: ClassVar[bool | None] = False

    patch: Count = 4
    """Side of a patch in pixels; a divisor of the images' height and width."""
    dim: Count = 192
    """Numbers a token; a multiple of `heads`."""
    depth: Count = 2
    """Blocks of attention and perceptron."""
    heads: Count = 12
    """Attention heads of a block. With more of them the tokens' gradients differ more, which helps `april`."""
    mlp_ratio: Positive = 2.0
    """Units of a block's hidden layer, in multiples of `dim`."""
    norm: Literal["pre", "post"] = "pre"
    """Where a block's LayerNorms stand: `pre`, before attention and perceptron (with one more before the last layer),
    as in ViT; `post`, after each of them, as in Vaswani et al. (2017)."""
    first_skip: bool = True
    """Whether the first block has a residual connection around its attention; the others always do."""
    qkv_bias: bool = True
    """Whether query, key and value have biases."""
    position_std: Positive = 0.02
    """Standard deviation with which class token and position embedding start."""

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Raises InputError if `patch` does not divide the image's sides, or `heads` does not divide `dim`."""
        from fedsim.models.vit import vit  # imports torch

        return vit(
            shape,
            classes,
            patch=self.patch,
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            norm=self.norm,
            first_skip=self.first_skip,
            qkv_bias=self.qkv_bias,
            position_std=self.position_std,
        )


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
