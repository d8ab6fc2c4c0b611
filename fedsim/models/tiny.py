"""A network with BatchNorm that is small enough to be attacked in a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TinyBatchNorm:
    """Two small convolutions with a BatchNorm layer behind each, then one linear layer: for tests of plugins, which a
    ResNet would make slow. Any image size from 4x4 on.
    """

    batchnorm: ClassVar[bool | None] = True

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        from collections import OrderedDict

        from torch import nn  # not above: settings are read before torch is imported

        channels, height, width = shape
        return nn.Sequential(
            OrderedDict[str, nn.Module](
                conv1=nn.Conv2d(channels, 4, 3, padding=1, bias=False),
                norm1=nn.BatchNorm2d(4),
                act1=nn.ReLU(),
                conv2=nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False),
                norm2=nn.BatchNorm2d(8),
                act2=nn.ReLU(),
                flatten=nn.Flatten(),
                fc=nn.Linear(8 * -(-height // 2) * -(-width // 2), classes),
            )
        )
