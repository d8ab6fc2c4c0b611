"""From a model's settings to a network whose initial weights depend on the seed alone."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import nn

from fedsim.errors import InputError


class Model(Protocol):
    """What a model component is: a frozen dataclass of settings that can build its network."""

    batchnorm: ClassVar[bool | None]
    """Whether the network has BatchNorm layers; None where only the built network tells."""

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """A network from normalised images (N, *shape) to logits (N, classes), its weights drawn from torch's
        global generator. Raises InputError where images of this shape do not fit.
        """
        ...


def build(settings: Model, shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    """The network on the CPU, in training mode. The same seed gives the same weights, whatever was drawn
    before, and torch's global generator is left as it was.

    shape: channels, height, width of an image.
    Raises InputError where the images do not fit the network, or its output is not (N, classes).
    """
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: torch.manual_seed would also reseed the GPUs, which fork_rng does not
        # restore here.
        torch.default_generator.manual_seed(seed)
        network = settings.build(shape, classes)
        try_out(network, shape, classes, type(settings).__name__)
    return network


def try_out(network: nn.Module, shape: tuple[int, int, int], classes: int, name: str) -> None:
    """Pass one blank image through the network in evaluation mode, which changes nothing in it.

    Raises InputError, with the network's own words, if that fails or the output is not (1, classes).
    """
    training = network.training
    network.eval()
    size = "x".join(map(str, shape))
    try:
        with torch.no_grad():
            logits = network(torch.zeros(1, *shape))
    except Exception as error:
        raise InputError(
            f"model {name} cannot take images of {size} (channels x height x width): {error}; "
            "choose another model, or images of another size or number of channels"
        ) from error
    finally:
        network.train(training)
    found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if found != (1, classes):
        raise InputError(f"model {name} returns {found} for one image of {size}, not (1, {classes})")
