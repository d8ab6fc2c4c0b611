"""LPIPS (Zhang et al., CVPR 2018), by the `lpips` package, with a word instead of a crash where weights are missing."""

from __future__ import annotations

import contextlib
import functools
import io
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Net = Literal["squeeze", "alex", "vgg"]

SMALLEST = 32
"""Pixels: smaller images are enlarged bilinearly to this side. AlexNet takes no less than 31, and CIFAR's 32 stay."""

_FILES = {
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
}
_PATIENCE = 5.0
"""Seconds to wait for a server that would send weights."""


def lpips(
    guess: Tensor, truth: Tensor, net: Net = "squeeze", *, normalize: bool = True
) -> tuple[Tensor | None, str | None]:
    """The distance of each pair in the features of a network; lower is closer, 0 for an exact copy.

    guess, truth: (N, C, H, W) in [0, 1]; one channel is repeated to three. normalize: bring them to [-1, 1] first, as
    the network expects; False shows them as they are. Returns ((N,), None), or (None, why) where the network's weights
    are neither in torch's hub cache (`TORCH_HOME`) nor to be had.
    """
    network = _network(net)
    if isinstance(network, str):
        return None, network
    with torch.no_grad():
        values = network(_fitted(guess), _fitted(truth), normalize=normalize)
    return values.flatten().float(), None


def weights_file(net: str) -> Path:
    """Where torch keeps the network's weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _FILES[net]


def _fitted(images: Tensor) -> Tensor:
    images = images.float()
    if images.shape[1] == 1:
        images = images.repeat(1, 3, 1, 1)
    side = min(images.shape[-2:])
    if side < SMALLEST:
        images = torch.nn.functional.interpolate(images, scale_factor=SMALLEST / side, mode="bilinear")
    return images


@functools.cache
def _network(net: Net) -> Any:
    """The network, or why there is none."""
    with _quiet():
        try:
            import lpips as package

            with torch.random.fork_rng(devices=[]):
                return package.LPIPS(net=net, verbose=False).eval().requires_grad_(False)
        except Exception as error:  # whatever goes wrong with weights, a score must not end a run
            reason = " ".join(str(error).split()) or type(error).__name__
            return (
                f"not available: the weights of {net} are not at {weights_file(net).name} in torch's hub cache and "
                f"could not be downloaded ({reason[:120]})"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No chatter on the screen, and no minutes of waiting for a server that does not answer."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        socket.setdefaulttimeout(patience)
