"""The six-layer convolutional network that GradAttack trains on MNIST (Huang et al., NeurIPS 2021, section 5)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fedsim.errors import InputError
from fedsim.models.activations import activation as make

STAGES = 3
CONVOLUTIONS_A_STAGE = 2
KERNEL = 3


def side_after(side: int, padding: int) -> int:
    """Height or width of the last feature map for an image of `side` pixels; 0 if nothing is left of it."""
    for stage in range(STAGES):
        if stage:
            side //= 2
        side -= CONVOLUTIONS_A_STAGE * (KERNEL - 1 - 2 * padding)
        if side < 1:
            return 0
    return side


def convnet6(
    shape: tuple[int, int, int],
    classes: int,
    *,
    width: int = 32,
    hidden: int = 1024,
    activation: str = "relu",
    pooling: str = "max",
    padding: int = 1,
    init: str = "kaiming",
) -> nn.Sequential:
    """Two convolutions of `width` channels, two of 2 `width`, two of 4 `width`, then `hidden` units, then `classes`.

    All kernels are 3x3 with stride 1; a 2x2 pooling stands between the pairs; every layer but the last is
    followed by the activation. No normalisation layers. Input (N, C, H, W), normalised; output (N, classes),
    logits.

    Raises InputError if nothing is left of an image of this shape.
    """
    channels, height, width_in_pixels = shape
    rows, columns = side_after(height, padding), side_after(width_in_pixels, padding)
    if not (rows and columns):
        remedy = " or padding = 1" if padding == 0 else ""
        raise InputError(
            f"model convnet6: images of {height}x{width_in_pixels} are too small for two poolings and "
            f"six 3x3 convolutions with padding = {padding}; use larger images{remedy}, "
            "or the models mlp or lenet"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = channels
    for stage in range(1, STAGES + 1):
        if stage > 1:
            layers[f"pool{stage - 1}"] = nn.MaxPool2d(2) if pooling == "max" else nn.AvgPool2d(2)
        after = width * 2 ** (stage - 1)
        for place in range(1, CONVOLUTIONS_A_STAGE + 1):
            layers[f"conv{stage}_{place}"] = nn.Conv2d(before, after, KERNEL, padding=padding)
            layers[f"act{stage}_{place}"] = make(activation)
            before = after
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(before * rows * columns, hidden)
    layers["act_fc1"] = make(activation)
    layers["fc2"] = nn.Linear(hidden, classes)
    network = nn.Sequential(layers)
    if init == "kaiming":
        _kaiming(network)
    return network


def _kaiming(network: nn.Sequential) -> None:
    """He et al. 2015, equation 10: weights of variance 2 / fan-in, biases 0. A ReLU network then keeps its scale."""
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
