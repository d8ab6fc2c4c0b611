"""The model under attack, rebuilt from an observation and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from fedsim import batchnorm, plugins
from fedsim.adversaries.base import Observation
from fedsim.data.dataset import Normalisation
from fedsim.models.precode import Bottleneck

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Victim:
    """What an attack works on, on its device.

    model: an empty frame in the mode in which the client trained, but without dropout and with a variational bottleneck
        that takes the mean, since nobody else knows what these drew; parameters are passed to it.
    parameters, target: the broadcast parameters and the update, by name, in the order of the model.
    shape: (N, C, H, W) of the private batch.
    """

    model: nn.Module
    parameters: Tensors
    target: Tensors
    normalise: Normalisation
    shape: tuple[int, int, int, int]
    classes: int
    facts: Mapping[str, Any]

    @functools.cached_property
    def gradient(self) -> Tensors:
        """The update as the gradient of the mean loss: of FedAvg, what one local step at the local rate came to."""
        if self.facts["algorithm"] != "fedavg":
            return self.target
        rate = float(self.facts["learning_rate"])
        return {name: value / rate for name, value in self.target.items()}


def rebuild(seen: Observation, device: torch.device) -> Victim:
    """The victim that an observation shows. Needs the sights global_model, update and num_examples."""
    facts = seen.facts
    settings = plugins.load("models", facts["model"]["name"])
    # JSON has no tuples, but a frozen dataclass that is to be hashed has no lists.
    values = {
        key: tuple(value) if isinstance(value, list) else value for key, value in facts["model"]["settings"].items()
    }
    known = {one.name for one in fields(settings)}
    built = settings(**{key: value for key, value in values.items() if key in known})
    height_width = tuple(facts["image_shape"])
    with torch.random.fork_rng(devices=[]):
        model = batchnorm.apply_policy(built.build(height_width, facts["classes"]), facts["batchnorm"])
    batchnorm.training_mode(model, facts["batchnorm"])
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd | Bottleneck):
            module.eval()  # no noise, and no draw from the generator that the whole process shares
    # channels_last is the layout that the CPU's and the GPU's convolutions want; only strides change.
    model = model.to(device).to(memory_format=torch.channels_last)
    parameters = {name: value.to(device) for name, value in seen.part("model").items()}
    return Victim(
        model=model,
        parameters={name: _laid_out(value) for name, value in parameters.items()},
        target={name: _laid_out(value.to(device)) for name, value in seen.part("update").items()},
        normalise=Normalisation(tuple(facts["mean"]), tuple(facts["std"])),
        shape=(_images(seen), *height_width),
        classes=int(facts["classes"]),
        facts=facts,
    )


def _images(seen: Observation) -> int:
    """How many images to look for. A client that trains with differential privacy says how many it would draw on
    average; who is granted its labels knows how many it drew.
    """
    labels = seen.tensors.get("known/labels")
    return int(seen.facts["num_examples"]) if labels is None else len(labels)


def _laid_out(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
