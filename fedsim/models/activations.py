"""Activation functions by the name that a setting gives them."""

from __future__ import annotations

from torch import nn

# None works in place: inverting a gradient differentiates twice through the activation, and Opacus refuses
# in-place ones.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


def activation(name: str) -> nn.Module:
    """A new module for the name. Raises KeyError for a name that is not in `ACTIVATIONS`."""
    return ACTIVATIONS[name]()
