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
from fedsim.errors import InputError

Pair = tuple[Tensor, Tensor]
"""Mean and biased variance of a layer's input, each (channels,)."""


class AttackedNorm(nn.Module):
    """A BatchNorm layer of the model under attack. It keeps no running statistics and notes those of its last input.

    fixed: the statistics to normalise by; None for the input's own.
    watch: whether to note the input's statistics, in `seen`.
    """

    def __init__(self, layer: batchnorm.Layer, fixed: Pair | None, watch: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        self.fixed, self.watch = fixed, watch
        self.seen: Pair | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The normalised input."""
        if self.watch:
            variance, mean = torch.var_mean(x, dim=[d for d in range(x.dim()) if d != 1], unbiased=False)
            self.seen = (mean, variance)
        by_mean, by_variance = self.fixed if self.fixed is not None else (None, None)
        return nn.functional.batch_norm(
            x, by_mean, by_variance, self.weight, self.bias, training=self.fixed is None, eps=self.eps
        )


@dataclass(frozen=True)
class Norms:
    """The replaced layers, and the statistics that each one's input should have; no prior where `wanted` is empty."""

    layers: tuple[AttackedNorm, ...]
    wanted: tuple[Pair, ...]

    def pairs(self) -> list[tuple[Pair, Pair]]:
        """(statistics of the guess, wanted statistics), layer by layer, after a forward pass."""
        out = []
        for layer, wanted in zip(self.layers, self.wanted, strict=False):
            assert layer.seen is not None
            out.append((layer.seen, wanted))
        return out


def install(model: nn.Module, mode: str, seen: Observation, device: torch.device) -> Norms:
    """Replace the model's BatchNorm layers as the mode says; it must fit the model (see `Geiping.objection`).

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
        replaced = AttackedNorm(layer, fixed, watch=mode != "proxy")
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
