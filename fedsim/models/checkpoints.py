"""A model on disk: parameters and BatchNorm statistics by name, in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsim import batchnorm, tensorfile
from fedsim.errors import InputError


def pack(parameters: Mapping[str, Tensor], running: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """The bytes of a checkpoint. running: `LAYER.running_mean` and `LAYER.running_var`. facts: JSON data."""
    tensors = {f"model/{name}": value for name, value in parameters.items()}
    return tensorfile.pack({**tensors, **{f"buffers/{name}": value for name, value in running.items()}}, facts)


def load(model: nn.Module, path: Path) -> None:
    """Write a checkpoint's parameters and statistics into a model. Statistics that are not stored stay as they are.

    Raises InputError where there is no such file, or it is of another model.
    """
    try:
        tensors, _ = tensorfile.unpack(path.read_bytes())
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
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(stored[name])
    running = {name[8:]: value for name, value in tensors.items() if name.startswith("buffers/")}
    known = set(batchnorm.statistics(model))
    batchnorm.load_statistics(model, {name: value for name, value in running.items() if name in known})
