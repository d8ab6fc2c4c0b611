"""PRECODE: a variational bottleneck in front of the last layer, whose noise is to spoil gradient inversion.

Scheliga, Maeder, Seeland, "PRECODE - A Generic Model Extension to Prevent Deep Gradient Leakage" (WACV 2022).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "bottleneck"
"""What the layer is called in the network that holds it."""


class Bottleneck(nn.Module):
    """(N, width) -> (N, width) through `units` random numbers, as the paper's code has it.

    An encoder, Linear(width, 2 units), gives the mean and, through softplus, the standard deviation of each unit; the
    code is mean + std * eps with eps ~ N(0, 1) in training and the mean in evaluation; a decoder, Linear(units, width),
    brings it back. The loss gets beta * KL(N(mean, std^2) || N(0, 1)), summed over units and averaged over the batch.

    Two deviations. The paper's code takes the divergence in bits, so that its beta of 1e-3 is 1e-3 / ln 2 = 1.4427e-3
    here. And it draws in evaluation too, where the accuracy then depends on the draw.

    generator: where eps comes from, on the CPU; neither saved nor copied with the layer. Without one, a pass in
    training raises RuntimeError.
    """

    def __init__(self, width: int, units: int, beta: float = 1e-3) -> None:
        super().__init__()
        self.units, self.beta = units, beta
        self.encoder = nn.Linear(width, 2 * units)
        self.decoder = nn.Linear(units, width)
        self.generator: torch.Generator | None = None
        self._penalty: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        mean, raw = self.encoder(x).chunk(2, dim=-1)
        std = F.softplus(raw)
        # Also in evaluation: an attacker's frame leaves the noise out, but not the penalty.
        self._penalty = self.beta * divergence(mean, std) if self.beta else None
        code = mean + std * self._noise(mean) if self.training else mean
        decoded: Tensor = self.decoder(code)
        return decoded

    def take_penalty(self) -> Tensor | None:
        """beta * KL of the last pass, a scalar, which the layer forgets; None if beta is 0. See `loss.regulariser`.

        Raises RuntimeError without a pass since the last call: a loss that lacks its penalty is a silent error.
        """
        if not self.beta:
            return None
        taken, self._penalty = self._penalty, None
        if taken is None:
            raise RuntimeError("the bottleneck's penalty is read after a forward pass, once; there was none")
        return taken

    def _noise(self, like: Tensor) -> Tensor:
        if self.generator is None:
            raise RuntimeError(
                "a bottleneck draws noise in training and has no generator to draw from; "
                "call fedsim.models.precode.seed(model, generator) before training, or model.eval() for the mean"
            )
        # In one precision and on one device, so that a seed gives the same noise on all.
        return torch.randn(like.shape, generator=self.generator).to(like)

    def __getstate__(self) -> dict[str, Any]:
        """For copies: without the generator, and without a penalty, whose graph cannot be copied."""
        return {**self.__dict__, "generator": None, "_penalty": None}


def divergence(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) in nats, summed over the last dimension and averaged over the others; a scalar."""
    # Softplus ends as exactly 0 far below; the logarithm's slope there would be 0 times infinity.
    log = std.clamp_min(torch.finfo(std.dtype).tiny).log()
    return (0.5 * (mean.square() + std.square() - 1) - log).sum(-1).mean()


def insert(network: nn.Module, units: int, beta: float = 1e-3) -> nn.Module:
    """The network, with a bottleneck of `units` in front of its last fully connected layer; 0: as it is.

    The layers that are there keep names, weights and order; the new ones are `bottleneck.encoder` and
    `bottleneck.decoder`, with weights drawn as PyTorch does, whatever initialisation the others have.
    The last layer has to be in an nn.Sequential, or in a module that keeps a place (`bottleneck`, None) for this.

    Raises TypeError for other networks.
    """
    if not units:
        return network
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not found:
        raise TypeError(f"{type(network).__name__} has no fully connected layer to put a bottleneck in front of")
    path, last = found[-1]
    parent = network.get_submodule(path.rpartition(".")[0])
    made = Bottleneck(last.in_features, units, beta)
    if isinstance(parent, nn.Sequential):
        children = list(parent.named_children())
        place = next(number for number, (_, child) in enumerate(children) if child is last)
        for name, _ in children[place:]:
            delattr(parent, name)
        for name, child in [(NAME, made), *children[place:]]:
            parent.add_module(name, child)
    elif getattr(parent, NAME, made) is None:
        parent.bottleneck = made
    else:
        raise TypeError(f"{type(parent).__name__} keeps no place for a bottleneck in front of its last layer")
    return network


def bottlenecks(model: nn.Module) -> dict[str, Bottleneck]:
    """The bottlenecks of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Bottleneck)}


def seed(model: nn.Module, generator: torch.Generator) -> None:
    """Let the model's noise come from a generator (on the CPU) from now on. Nothing happens to a model without any."""
    for module in bottlenecks(model).values():
        module.generator = generator


def parameters_behind(model: nn.Module, *, encoder: bool = True) -> set[str]:
    """The parameters whose gradients the noise enters as a factor: those of the bottleneck and of all that follows it.

    What an attack leaves out that knows of the bottleneck: Scheliga, Maeder, Seeland, "Combining Variational Modeling
    with Partial Gradient Perturbation to Prevent Deep Gradient Leakage" (2022). Empty for a model without bottleneck.
    encoder: whether its own count among them, as there; only half of that gradient has the noise as a factor.

    With logits W (D z + d) + c, z = mean + std * eps and r = softmax(logits) - label (of one image), the gradients are:
        W: r (D z + d)^T, D: W^T r z^T. Both have z, and so eps, as a factor.
        c: r, d: W^T r. They depend on eps through the predictions alone.
        encoder, the rows of the mean: (D^T W^T r + beta mean) x^T, likewise.
        encoder, the rows of the std: (D^T W^T r * eps + beta (std - 1 / std)) * slope of softplus, times x^T. With eps
            taken for 0, nothing but the penalty is left of it.
    Before the bottleneck no gradient is free of eps either: the derivative by x is the sum of both ways through the
    encoder. But there eps only turns the vector that comes back, while what it is multiplied with is exact: of a single
    image, the weight gradient of a linear layer is still the outer product of some vector with that layer's input.

    "Follows" goes by the order in which the model lists its layers, as in all models of fedsim.
    """
    found = bottlenecks(model)
    encoders = tuple(f"{name}.encoder." for name in found)
    names = [name for name, _ in model.named_parameters()]
    first = min((place for place, name in enumerate(names) if name.startswith(encoders)), default=len(names))
    return {name for name in names[first:] if encoder or not name.startswith(encoders)}
