"""The first fully connected layer of a model, for attacks that read the image off its gradient."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.adversaries.inversion.victim import Victim
from fedsim.errors import InputError

_TRANSPARENT = (nn.Flatten, nn.Identity, nn.Unflatten)
"""Layers that leave the numbers of an image as they are."""


def misfit(model: nn.Module, relu: bool = False) -> str | None:
    """Why the model does not begin with Linear(bias=True) on the bare image; None if it does.

    relu: whether the layer after it has to be a ReLU as well. Goes by the order in which layers are registered, which
    is all that shows without an image; `sees_image` makes sure later. The answer names the layer in the
    way, its type, and a remedy.
    """
    remedy = 'use a model that begins with one, such as "mlp"'
    layers = list(_leaves(model))
    for place, (name, layer) in enumerate(layers):
        if isinstance(layer, nn.Linear):
            if layer.bias is None:
                return f"its first layer, '{name}' (Linear), has no bias to divide by; {remedy}"
            if relu:
                return _not_relu(name, layers[place + 1 :])
            return None
        if not isinstance(layer, _TRANSPARENT):
            kind = type(layer).__name__
            return f"it needs a fully connected layer on the bare image, and '{name}' ({kind}) comes first; {remedy}"
    return f"it has no fully connected layer; {remedy}"


def _not_relu(name: str, rest: list[tuple[str, nn.Module]]) -> str | None:
    if rest and isinstance(rest[0][1], nn.ReLU):
        return None
    remedy = 'use "mlp" with a hidden layer and activation = "relu"'
    after = f"'{rest[0][0]}' ({type(rest[0][1]).__name__}) comes" if rest else "nothing comes"
    return f"it needs a ReLU right after the first layer '{name}' (Linear), and {after} there; {remedy}"


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers that hold no other, and those with parameters of their own, in order of registration."""
    for name, module in model.named_modules():
        own = next(module.parameters(recurse=False), None) is not None
        if own or (next(module.children(), None) is None and not isinstance(module, nn.Sequential)):
            yield name or "model", module


def find(victim: Victim, relu: bool = False) -> str:
    """The name of that layer in the victim's model.

    Raises InputError, with the reason and a remedy, for a model that has none or alters the image before it.
    """
    problem = misfit(victim.model, relu)
    if problem:
        raise InputError(f"model '{victim.facts['model']['name']}': {problem}")
    name = next(name for name, layer in _leaves(victim.model) if isinstance(layer, nn.Linear))
    if not sees_image(victim, name):
        raise InputError(
            f"model '{victim.facts['model']['name']}': its layer '{name}' does not get the bare, flattened image; "
            'use a model whose first layer does, such as "mlp"'
        )
    return name


def sees_image(victim: Victim, name: str) -> bool:
    """Whether the input of layer `name` is the flattened image, tried with one made-up image."""
    seen: list[Tensor] = []
    layer = victim.model.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    like = next(iter(victim.parameters.values()))
    count = victim.shape[1] * victim.shape[2] * victim.shape[3]
    probe = torch.linspace(-1, 1, count, device=like.device, dtype=like.dtype).view(1, *victim.shape[1:])
    modes = [(module, module.training) for module in victim.model.modules()]
    try:
        with torch.no_grad():
            # Without dropout and the like, which would draw from the global random state.
            functional_call(victim.model.eval(), victim.parameters, (probe,))
    finally:
        handle.remove()
        for module, mode in modes:
            module.training = mode
    return len(seen) == 1 and torch.equal(seen[0].flatten(), probe.flatten())


def gradients(victim: Victim, name: str) -> tuple[Tensor, Tensor]:
    """The gradients of that layer's weight, (m, n), and bias, (m,), in float64."""
    prefix = "" if name == "model" else f"{name}."
    gradient = victim.gradient
    return gradient[f"{prefix}weight"].double(), gradient[f"{prefix}bias"].double()


def parameters(victim: Victim, name: str) -> tuple[Tensor, Tensor]:
    """That layer's weight, (m, n), and bias, (m,), in float64."""
    prefix = "" if name == "model" else f"{name}."
    return victim.parameters[f"{prefix}weight"].double(), victim.parameters[f"{prefix}bias"].double()


def padded(found: Tensor, count: int) -> Tensor:
    """Normalised images (k, ...), k <= count, filled up to `count` with the mean image of the data set (zeros).

    Pairing is one to one, so an attack that gave only what it found would be scored on what it found.
    """
    return torch.cat([found, found.new_zeros((count - len(found), *found.shape[1:]))])


def check_gradient(weight: Tensor, bias: Tensor, name: str) -> None:
    """Raises InputError for a gradient of layer `name` with nothing in it, or with infinities."""
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise InputError(f"layer '{name}': its gradient is not finite; lower the learning rate of the training")
    if not (weight.any() and bias.any()):
        raise InputError(f"layer '{name}': its gradient is zero and says nothing about the batch; attack another round")
