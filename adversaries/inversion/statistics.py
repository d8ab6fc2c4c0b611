"""What an attack does at BatchNorm layers: the modes of Huang et al. (NeurIPS 2021), section 3, told apart.

mode             the guess is normalised by          the prior R_BN pulls its statistics to
exact            the private batch's statistics      the private batch's
own_statistics   its own                             the private batch's
infer            its own                             the running ones
proxy            the running ones                    (no prior)

The client itself normalised its batch by its own statistics, except under the policy `freeze`, where it used the frozen
running ones: there `proxy` is what the client did.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim import batchnorm
from fedsim.adversaries.base import Observation
from fedsim.adversaries.inversion.normalisation import normalise
from fedsim.errors import InputError

Pair = tuple[Tensor, Tensor]
"""Mean and biased variance of a layer's input, each (channels,)."""


class AttackedNorm(nn.Module):
    """A BatchNorm layer of the model under attack. It keeps no running statistics and notes those of its last input.

    mean, variance: buffers with the statistics to normalise by; None for the input's own.
    watch: whether to note the input's statistics, in `seen`.
    """

    mean: Tensor | None
    variance: Tensor

    def __init__(self, layer: batchnorm.Layer, fixed: Pair | None, watch: bool) -> None:
        super().__init__()
        if layer.affine:
            self.weight, self.bias = layer.weight, layer.bias
        else:  # scales by 1 and shifts by 0
            self.register_buffer("weight", torch.ones(layer.num_features))
            self.register_buffer("bias", torch.zeros(layer.num_features))
        self.eps, self.watch = layer.eps, watch
        self.register_buffer("mean", fixed[0] if fixed else None)
        self.register_buffer("variance", fixed[1] if fixed else None)
        self.seen: Pair | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The normalised input."""
        given: Pair | None = None if self.mean is None else (self.mean, self.variance)
        used = given
        if given is None or self.watch:
            variance, mean = torch.var_mean(x, dim=[d for d in range(x.dim()) if d != 1], unbiased=False)
            self.seen = (mean, variance) if self.watch else None
            used = given or (mean, variance)
        assert used is not None
        return normalise(x, *used, self.weight, self.bias, self.eps, own=given is None)


@dataclass(frozen=True)
class Norms:
    """The replaced layers, and the statistics that each one's input should have; no prior where `wanted` is empty."""

    layers: tuple[AttackedNorm, ...]
    wanted: tuple[Pair, ...]

    def take(self) -> list[Pair]:
        """The statistics of the guess, layer by layer, after a forward pass. The layers forget them."""
        out = []
        for layer in self.layers if self.wanted else ():
            assert layer.seen is not None
            out.append(layer.seen)
            layer.seen = None
        return out


def install(model: nn.Module, mode: str, seen: Observation, device: torch.device) -> Norms:
    """Replace the model's BatchNorm layers as the mode says; it must fit the model (see `Inversion.objection`).

    Raises InputError where the observation lacks the mode's statistics.
    """
    found = batchnorm.layers(model)
    if not found:
        return Norms((), ())
    private = mode in ("exact", "own_statistics")
    if private:  # under the policy share_batch the client itself sends them
        source = _pairs(seen, "sent_buffers", "mean", "var")
    else:
        source = _pairs(seen, "buffers", "running_mean", "running_var")
    made, wanted = [], []
    for name, layer in found.items():
        if name not in source:
            raise InputError(f"the observation has no statistics of layer '{name}', which batchnorm = \"{mode}\" needs")
        mean, variance = (value.to(device) for value in source[name])
        fixed = (mean, variance) if mode in ("exact", "proxy") else None
        replaced = AttackedNorm(layer, fixed, watch=mode != "proxy").to(device)
        model.set_submodule(name, replaced)
        made.append(replaced)
        wanted.append((mean, variance))
    return Norms(tuple(made), tuple(wanted) if mode != "proxy" else ())


def _pairs(seen: Observation, sent: str, mean: str, variance: str) -> dict[str, Pair]:
    """Statistics by layer: as granted (`known/MEAN/LAYER`), else as they travelled (`SENT/LAYER.MEAN`)."""
    granted = {kind: seen.part(f"known/{kind}") for kind in (mean, variance)}
    if not granted[mean]:
        travelled = seen.part(sent)
        granted = {
            kind: {
                name.removesuffix(f".{kind}"): value for name, value in travelled.items() if name.endswith(f".{kind}")
            }
            for kind in (mean, variance)
        }
    return {name: (value, granted[variance][name]) for name, value in granted[mean].items()}
