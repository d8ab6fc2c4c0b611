"""What a plugin may return from an attack: its contract, looked after."""

from __future__ import annotations

import json
import numbers
import re
from collections.abc import Mapping
from typing import Any

import torch

from fedsim.adversaries.base import Reconstruction
from fedsim.runs import finite
from fedsim.settings import NAME_PATTERN


def check(found: Reconstruction, shape: tuple[int, ...], size: int) -> None:
    """A plugin's answer must be what the contract says, or it is the plugin's failure.

    size: images in the batch. More are refused: pairing picks the best, so a throng would score for its number.
    """
    check_form(found)
    images, labels, ids = found.images, found.labels, found.ids
    for name, values in (("images", images), ("labels", labels)):
        if isinstance(values, torch.Tensor) and len(values) > size and ids is None:
            raise ValueError(f"{len(values)} {name} were returned for a batch of {size}; at most {size} can be scored")
    if images is None:
        if labels is None or len(labels) == 0:
            raise ValueError("neither images nor labels were returned")
        return
    _check_images("images", images, shape)
    if found.initial is not None:
        _check_images("initial", found.initial, shape)
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(images)} images, but {len(labels)} labels")


def check_form(found: Reconstruction) -> None:
    """What can be told without a look at the data set or the batch: the types. Another process may be told the answer
    after that.
    """
    if not isinstance(found, Reconstruction):
        raise TypeError(f"attack returned {type(found).__name__}, not a Reconstruction")
    images, labels = found.images, found.labels
    _check_words(found)
    if labels is not None:
        whole = isinstance(labels, torch.Tensor) and labels.dim() == 1 and not labels.is_floating_point()
        if not whole or bool((labels < 0).any()):
            raise ValueError("labels must be a tensor (N,) of whole numbers from 0 on")
    ids = found.ids
    if ids is not None and (
        ids.dim() != 1
        or ids.is_floating_point()
        or len(ids.unique()) != len(ids)
        or images is None
        or len(ids) != len(images)
    ):
        raise ValueError("ids must be whole numbers (N,), a different one for each of the N images")
    for name in ("images", "initial"):
        value = getattr(found, name)
        if value is not None and not isinstance(value, torch.Tensor):
            raise ValueError(f"{name} must be a tensor (N, C, H, W), not {type(value).__name__}")
    if found.raw is not None and not isinstance(found.raw, torch.Tensor):
        raise ValueError(f"raw must be a tensor, not {type(found.raw).__name__}")


def check_names(found: Mapping[Any, Any]) -> None:
    """Of several answers by name: there must be one at least, and each name goes into an adversary's id and a file's
    name.
    """
    if not found:
        raise ValueError("combine returned no answer at all")
    for name in found:
        if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
            raise ValueError(f"combine named an answer {name!r}; a name is made of letters, digits, - and _")


def _check_images(name: str, images: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(images, torch.Tensor) or images.dim() != 4 or len(images) == 0:
        raise ValueError(f"{name} must be a tensor (N, C, H, W), not {getattr(images, 'shape', type(images).__name__)}")
    if tuple(images.shape[1:]) != shape:
        raise ValueError(f"{name} have shape {tuple(images.shape[1:])} each, but the data set's have {shape}")
    if not torch.isfinite(images).all():
        raise ValueError(f"the returned {name} hold NaN or Inf")


def _check_words(found: Reconstruction) -> None:
    """What is neither images nor labels, and goes into attacks.jsonl as it is."""
    if not isinstance(found.objective, numbers.Real):
        raise ValueError(f"objective must be a number, not {type(found.objective).__name__}")
    if not isinstance(found.iterations, numbers.Integral):
        raise ValueError(f"iterations must be a whole number, not {found.iterations!r}")
    if not isinstance(found.status, str) or not found.status:
        raise ValueError(f"status must be a word, not {found.status!r}")
    for step, value in found.history:
        if not isinstance(step, numbers.Integral) or not isinstance(value, numbers.Real):
            raise ValueError(f"history must be pairs of an iteration and an objective, not {(step, value)!r}")
    try:
        json.dumps(finite(dict(found.notes)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"notes must be JSON data: {error}") from None
