"""R-GAP (Zhu, Blaschko, ICLR 2021): from one example's gradient to its input, layer by layer from the last.

At every layer z = W x + b with the weight gradient g, two sets of linear equations hold for its input x: the weight
constraints W x = z - b, where z comes from the layer above by inverting the activation, and the gradient constraints
K x = g, where K is made of dL/dz. Least squares solves them together, and W^T dL/dz goes on to the layer below.

Two things differ from the paper. The loss is cross-entropy over any number of classes (see rgap_head.py). And the
equations are weighted: a weight constraint by the activation's derivative, since an error of x becomes that much larger
in z; and both sets to the same mean square, since a gradient of 1e-4 beside weights of 1e-1 would otherwise hardly
count. Of five CIFAR-10 images through the paper's network, float32: 43 dB without the weights, 122 dB with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim import progress
from fedsim.adversaries.inversion.closed_form import rgap_head
from fedsim.adversaries.inversion.closed_form.rgap_head import Head
from fedsim.adversaries.inversion.closed_form.rgap_layers import (
    Array,
    Operator,
    activation,
    convolution,
    double,
    linear,
)
from fedsim.adversaries.inversion.closed_form.rgap_solve import solve
from fedsim.errors import InputError
from fedsim.models.loss import cross_entropy

Tensors = Mapping[str, Tensor]

LARGEST = 16_384
"""Inputs of a layer. The normal equations are a dense matrix of that many rows and columns: 2 GB."""


@dataclass(frozen=True)
class Recovered:
    """An input of the network, and what happened at each layer on the way, in the order of the recursion.

    values: float64 (C * H * W,) or (inputs,). layers: JSON data for each linear operator.
    outside: by the name of the activation, how many of its outputs were not in its range (of a ReLU: 0).
    """

    values: Array
    layers: tuple[dict[str, Any], ...]
    outside: Mapping[str, int]


def chain(model: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The layers of a network that is nothing but nested nn.Sequential, with their dotted names; None for others."""
    if not isinstance(model, nn.Sequential):
        return None
    out: list[tuple[str, nn.Module]] = []
    for name, module in model.named_children():
        inner = chain(module)
        out += [(name, module)] if inner is None else [(f"{name}.{below}", layer) for below, layer in inner]
    return out


def objection(model: nn.Module) -> str | None:
    """Why the recursion cannot walk through the model, in words for the user; None if it can."""
    remedy = "use the model cnn6, lenet or mlp"
    layers = chain(model)
    if layers is None:
        return f"it walks back through a plain chain of layers, but {type(model).__name__} is none; {remedy}"
    flat = False
    for place, (name, module) in enumerate(layers):
        where = f"layer {place} ('{name}', {type(module).__name__})"
        if isinstance(module, nn.Conv2d):
            if module.groups != 1 or module.padding_mode != "zeros":
                return f"{where} has groups or a padding other than zeros, which it does not invert; {remedy}"
            if flat:
                return f"{where} comes after a flat layer, which it does not invert; {remedy}"
        elif isinstance(module, nn.Flatten):
            if module.start_dim != 1 or module.end_dim != -1:
                return f"{where} does not flatten the whole image; {remedy}"
            flat = True
        elif isinstance(module, nn.Linear):
            if not flat:
                return f"{where} does not come after nn.Flatten; {remedy}"
        elif activation(module) is None:
            return f"{where} cannot be inverted; {remedy}, with leaky_relu, sigmoid or tanh for an activation"
    if not layers or not isinstance(layers[-1][1], nn.Linear):
        return f"the last layer is not linear, so that its gradient does not tell the loss's slope; {remedy}"
    return None


def operators(
    layers: list[tuple[str, nn.Module]], parameters: Tensors, shape: tuple[int, int, int]
) -> dict[str, Operator]:
    """The operator of each convolution and linear layer, by its name, for images of the shape (C, H, W).

    Raises InputError for a layer whose equations would not fit into memory.
    """
    out: dict[str, Operator] = {}
    now: tuple[int, ...] = shape
    for name, module in layers:
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if int(np.prod(now)) > LARGEST:
            raise InputError(
                f"R-GAP: layer '{name}' has {int(np.prod(now))} inputs, and solving for more than {LARGEST} takes too "
                "much memory; use smaller images or a network with fewer channels"
            )
        weight, bias = parameters[f"{name}.weight"], parameters.get(f"{name}.bias")
        if isinstance(module, nn.Conv2d):
            out[name] = convolution(module, weight, bias, (now[0], now[1], now[2]))
        else:
            out[name] = linear(weight, bias)
        now = out[name].after
    return out


def heads(name: str, parameters: Tensors, gradient: Tensors) -> list[Head]:
    """What the last layer, called `name`, says; best first.

    Raises InputError if it says nothing.
    """
    weight, seen = double(parameters[f"{name}.weight"]), double(gradient[f"{name}.weight"])
    if not (np.isfinite(seen).all() and seen.any()):
        raise InputError(
            f"R-GAP: the gradient of the last layer, '{name}', is zero or not finite, so that it says nothing about "
            "the image; attack an earlier round, or a client without that defense"
        )
    bias = f"{name}.bias"
    found = (
        rgap_head.from_bias(weight, double(parameters[bias]), seen, double(gradient[bias]))
        if bias in parameters
        else rgap_head.from_weight(weight, seen)
    )
    if not found:
        raise InputError(f"R-GAP: no slope of the loss is consistent with the gradient of the last layer, '{name}'")
    return found


def recover(
    layers: list[tuple[str, nn.Module]],
    known: Mapping[str, Operator],
    gradient: Tensors,
    head: Head,
    ridge: float,
    ranks: bool,
) -> Recovered:
    """Walk from the last layer to the network's input.

    known: from `operators`. gradient: of the loss, by parameter name. ridge, ranks: as in `solve`.
    """
    # z is the output of the layer in hand, derivative that of the activations between it and the operator above.
    z, slope = head.features, known[layers[-1][0]].matrix.T @ head.slope
    derivative = np.ones_like(z)
    notes: list[dict[str, Any]] = []
    outside: dict[str, int] = {}
    steps = sum(name in known for name, _ in layers) - 1
    for name, module in reversed(layers[:-1]):
        if name in known:
            progress.report(len(notes), steps, f"layer {name}")
            operator = known[name]
            solved = solve(operator, z, derivative, slope, gradient[f"{name}.weight"], ridge, ranks)
            notes.append(
                {
                    "layer": name,
                    "residual": solved.residual,
                    "unknowns": operator.unknowns,
                    "equations": solved.equations,
                    "rank": solved.rank,
                    "ridge": solved.ridge,
                }
            )
            z, slope = solved.values, operator.matrix.T @ slope
            derivative = np.ones_like(z)
        elif not isinstance(module, nn.Flatten):
            how = activation(module)
            assert how is not None  # `objection` has looked
            z, factor, count = how.undo(z)
            derivative, slope = derivative * factor, slope * factor
            outside |= {name: count} if count else {}
    progress.report(steps, steps)
    return Recovered(z, tuple(notes), outside)


def rank_index(layers: tuple[dict[str, Any], ...], depth: int) -> float:
    """The sum over the operators i = 1..depth, from the image on, of (depth - i + 1) / depth * (rank - unknowns).

    0 where each layer's input is determined; the further below 0, and the nearer to the image, the less the gradient
    gives away. The last operator is not in `layers`: its input is always determined. After the rank analysis of the
    paper.
    """
    deficits = [one["rank"] - one["unknowns"] for one in reversed(layers)]
    return float(sum((depth - place) / depth * deficit for place, deficit in enumerate(deficits)))


def mismatch(model: nn.Module, parameters: Tensors, gradient: Tensors, image: Tensor, target: Array) -> float:
    """How far the gradient of an image is from the one seen, relative to the latter, over all parameters together.

    image: float64 (1, C, H, W), normalised. target: (classes,), what the cross-entropy is taken against, once its
    negative entries, which no label has, are cut off: they would explain a gradient of the wrong size.
    """
    share = np.clip(target, 0, None)
    label = torch.from_numpy(share / share.sum())[None]
    doubled = {name: value.cpu().double().requires_grad_() for name, value in parameters.items()}
    loss = cross_entropy(functional_call(model, doubled, (image,)), label)
    own = torch.autograd.grad(loss, list(doubled.values()))
    pairs = [(mine, gradient[name].cpu().double()) for name, mine in zip(doubled, own, strict=True)]
    apart = sum(float((mine - seen).square().sum()) for mine, seen in pairs)
    return math.sqrt(apart / sum(float(seen.square().sum()) for _, seen in pairs))
