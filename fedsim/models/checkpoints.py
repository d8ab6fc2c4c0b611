"""A model on disk: parameters and BatchNorm statistics by name, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsim import batchnorm, tensorfile
from fedsim.errors import InputError
from fedsim.experiment import Experiment


def pack(parameters: Mapping[str, Tensor], running: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """The bytes of a checkpoint. running: `LAYER.running_mean` and `LAYER.running_var`. facts: JSON data."""
    tensors = {f"model/{name}": value for name, value in parameters.items()}
    return tensorfile.pack({**tensors, **{f"buffers/{name}": value for name, value in running.items()}}, facts)


def model_facts(experiment: Experiment) -> dict[str, Any]:
    """What must be the same for a checkpoint to be the model that it was."""
    # As they are read back: tuples as lists.
    model = json.loads(json.dumps(experiment.model.describe()))
    return {"model": model, "group_norm": experiment.clients.batchnorm == "group_norm"}


def load(model: nn.Module, path: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint's parameters and statistics into a model. Statistics that are not stored stay as they are.

    facts: of the experiment that starts from it, as `model_facts` has them: names and shapes of parameters say nothing
    of activations, nor whether a layer normalises by batch or by group.
    Raises InputError where there is no such file, or it is of another model.
    """
    try:
        tensors, stored_facts = tensorfile.unpack(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"checkpoint {path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"checkpoint {path}: cannot be read: {error}; write it again with save_rounds") from None
    stored = {name[6:]: value for name, value in tensors.items() if name.startswith("model/")}
    own = dict(model.named_parameters())
    wrong = [
        name
        for name in own.keys() | stored.keys()
        if name not in own or name not in stored or own[name].shape != stored[name].shape
    ]
    if wrong:
        raise InputError(
            f"checkpoint {path}: is of another model ('{min(wrong)}' is not in both, or not of the same shape); "
            "give the experiment the model that the checkpoint was made with"
        )
    was, now = ({key: one[key] for key in ("model", "group_norm") if key in one} for one in (stored_facts, facts or {}))
    apart = [key for key in was.keys() & now.keys() if was[key] != now[key]]
    if apart:
        raise InputError(
            f"checkpoint {path}: was made with {min(apart)} = {was[min(apart)]}, but the experiment has "
            f"{now[min(apart)]}; give it the model, and the BatchNorm policy, that the checkpoint was made with"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(stored[name])
    running = {name[8:]: value for name, value in tensors.items() if name.startswith("buffers/")}
    known = set(batchnorm.statistics(model))
    batchnorm.load_statistics(model, {name: value for name, value in running.items() if name in known})
