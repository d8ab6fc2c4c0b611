"""The classification layer of a victim: its gradient, its parameters, and what reaches it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.adversaries.inversion.victim import Victim
from fedsim.models.layers import last_linear


@dataclass(frozen=True)
class LastLayer:
    """A fully connected layer with a row a class, in float64 on the CPU.

    weight (classes, features), bias (classes,) or None: its gradient, of the mean loss over all images of the update.
    own_weight, own_bias: its broadcast parameters.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    own_weight: Tensor
    own_bias: Tensor | None


def features_refusal(model: nn.Module) -> str | None:
    """Why what goes into the last layer cannot be read off its gradient, with the remedy; None if it can."""
    name = last_linear(model)
    if name is None:
        return "features go into a last fully connected layer, which the model has not; leave features out"
    if model.get_submodule(name).bias is None:
        return f"features are read off by the bias gradient, but layer '{name}' has no bias; leave features out"
    return None


def read(victim: Victim) -> LastLayer | None:
    """The victim's classification layer; None if it has none that is fully connected.

    An update of several local steps is divided by their number: the mean of their gradients.
    """
    name = last_linear(victim.model, victim.classes)
    if name is None:
        return None
    steps = int(victim.facts["num_steps"]) if victim.facts["algorithm"] == "fedavg" else 1

    def of(source: Mapping[str, Tensor], part: str) -> Tensor | None:
        value = source.get(f"{name}.{part}")
        return None if value is None else value.detach().cpu().double()

    gradient, own = victim.gradient, victim.parameters
    weight, own_weight, bias = of(gradient, "weight"), of(own, "weight"), of(gradient, "bias")
    assert weight is not None and own_weight is not None
    return LastLayer(name, weight / steps, None if bias is None else bias / steps, own_weight, of(own, "bias"))


def dummy_pass(
    victim: Victim, name: str, batches: int, rng: torch.Generator, buffers: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """What reaches the layer `name` from random images, and what is predicted of them. No gradient.

    The images are uniform in [0, 1], in `batches` batches as large as the private one, which matters to BatchNorm.
    buffers: statistics that were broadcast. Returns features (M, features) and predictions (M, classes), float64.
    """
    model = copy.deepcopy(victim.model)  # running statistics are written into, and hooks are hung on, the copy alone
    device = next(iter(victim.parameters.values())).device
    # A copy here too: a BatchNorm in training writes into what it is called with.
    state = {key: buffers[key].to(device, copy=True) for key, _ in model.named_buffers() if key in buffers}
    reached: list[Tensor] = []
    model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: reached.append(inputs[0].flatten(1)))
    predicted = []
    with torch.no_grad():
        for _ in range(batches):
            images = victim.normalise(torch.rand(victim.shape, generator=rng).to(device))
            logits = functional_call(model, {**victim.parameters, **state}, (images,))
            predicted.append(logits.cpu().double().softmax(1))
    return torch.cat(reached).cpu().double(), torch.cat(predicted)
