"""ResNet-18 for small images, with post-activation and with pre-activation blocks.

Both have the CIFAR stem: one 3x3 convolution of stride 1 and no max-pooling (He et al. 2015, section 4.2).
"""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)
BLOCKS_A_STAGE = 2


def _conv3x3(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)


class PostActivationBlock(nn.Module):
    """conv, BN, ReLU, conv, BN, plus the shortcut, ReLU (He et al. 2015, figure 2)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(before, after, stride)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(after, after)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            projection = nn.Conv2d(before, after, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(inner)) + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """BN, ReLU, conv, BN, ReLU, conv, plus the shortcut (He et al. 2016, figure 4e).

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input, without BN.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.relu1 = nn.ReLU()
        self.conv1 = _conv3x3(before, after, stride)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu2 = nn.ReLU()
        self.conv2 = _conv3x3(after, after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        return self.conv2(self.relu2(self.bn2(self.conv1(active)))) + self.shortcut(active)


class ResNet(nn.Module):
    """Stem (3x3 convolution, BN, ReLU), four stages of two blocks, mean over the last feature map, linear layer.

    Input (N, C, H, W), normalised, of any size (32x32 gives a last map of 4x4); output (N, classes), logits.
    """

    bottleneck: nn.Module | None

    def __init__(
        self, block: type[PostActivationBlock] | type[PreActivationBlock], channels: int, classes: int
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, WIDTHS[0])
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU()
        stages = []
        before = WIDTHS[0]
        for number, after in enumerate(WIDTHS):
            blocks: list[nn.Module] = []
            for place in range(BLOCKS_A_STAGE):
                blocks.append(block(before, after, stride=2 if number and not place else 1))
                before = after
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.register_module("bottleneck", None)  # the place of precode's
        self.linear = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.stages(self.relu(self.bn1(self.conv1(x))))
        # A plain mean, not adaptive pooling, whose backward pass on a GPU is not deterministic.
        features = features.mean(dim=(2, 3))
        if self.bottleneck is not None:
            features = self.bottleneck(features)
        return self.linear(features)


def resnet18(shape: tuple[int, int, int], classes: int) -> ResNet:
    """Post-activation ResNet-18: 20 BN layers, 11.17 M parameters for 3 channels and 10 classes."""
    return ResNet(PostActivationBlock, shape[0], classes)


def preact_resnet18(shape: tuple[int, int, int], classes: int) -> ResNet:
    """The ResNet-18 that GradAttack attacks: pre-activation blocks behind a stem that has BN and ReLU, and no
    BN after the last block. 17 BN layers, 11.17 M parameters for 3 channels and 10 classes.
    """
    return ResNet(PreActivationBlock, shape[0], classes)
