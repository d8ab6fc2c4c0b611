"""Values as JSON data and tensors, and back, bit for bit: what states are written with, in the place of pickle."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

import fedsim.grids.flower_internals as flower
from fedsim.errors import FedsimError

_MARK = "~"
"""Begins the one key of a table that stands for what JSON has no word for."""

_RECORDS: dict[str, type[ArrayRecord] | type[MetricRecord] | type[ConfigRecord]] = {
    "arrays": ArrayRecord,
    "metrics": MetricRecord,
    "config": ConfigRecord,
}


def told(value: Any, tensors: dict[str, Tensor], where: str = "") -> Any:
    """A value as JSON data; what tensors and arrays it holds is put into `tensors`, under the name of its place.

    None, truth values, numbers, text, bytes, lists, tuples, mappings by text or whole numbers, sets of either, tensors,
    NumPy arrays and numbers, and Flower's records. Raises FedsimError for anything else, with its place.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {f"{_MARK}float": repr(value)}
        case bytes() | bytearray():
            return {f"{_MARK}bytes": base64.b64encode(value).decode()}
        case Tensor():
            return {f"{_MARK}tensor": _put(value.detach().cpu(), tensors, where)}
        case np.ndarray():
            # Of no dimension, and not writable: torch has neither.
            own = torch.from_numpy(np.array(value, ndmin=1))
            return {f"{_MARK}array": _put(own, tensors, where), "shape": list(value.shape)}
        case np.generic():
            return {f"{_MARK}number": told(np.asarray(value), tensors, where)}
        case list():
            return [told(item, tensors, f"{where}/{place}") for place, item in enumerate(value)]
        case tuple():
            return {f"{_MARK}tuple": told(list(value), tensors, where)}
        case set() | frozenset():
            return {f"{_MARK}set": [told(item, tensors, where) for item in sorted(value)]}
        case RecordDict():
            return {f"{_MARK}records": _items(dict(value), tensors, where)}
    for kind, record in _RECORDS.items():
        if isinstance(value, record):
            held = flower.from_record(value) if isinstance(value, ArrayRecord) else dict(value)
            return {f"{_MARK}{kind}": _items(held, tensors, where)}
    if isinstance(value, Mapping):
        return {f"{_MARK}items": _items(value, tensors, where)}
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise FedsimError(f"{where or 'the value'} is of type {kind}, which a checkpoint cannot hold")


def _put(value: Tensor, tensors: dict[str, Tensor], where: str) -> str:
    """Put a tensor under the name of its place, or, as keys may hold slashes, one like it. Returns the name."""
    name, number = where, 2
    while name in tensors:
        name, number = f"{where}#{number}", number + 1
    tensors[name] = value
    return name


def _items(value: Mapping[Any, Any], tensors: dict[str, Tensor], where: str) -> list[list[Any]]:
    for key in value:
        if not isinstance(key, str | int):
            raise FedsimError(f"{where} has a key of type {type(key).__qualname__}, which a checkpoint cannot hold")
    return [[key, told(item, tensors, f"{where}/{key}")] for key, item in value.items()]


def meant(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `told` made these data of. Raises KeyError, TypeError or ValueError for data that are none."""
    if isinstance(data, list):
        return [meant(item, tensors) for item in data]
    if not isinstance(data, dict):
        return data
    # Whoever wrote the data may have sorted them.
    mark = next(key for key in data if key.startswith(_MARK)).removeprefix(_MARK)
    held = data[_MARK + mark]
    if mark in _RECORDS:
        items = {key: meant(item, tensors) for key, item in held}
        return flower.to_record(items) if mark == "arrays" else _RECORDS[mark](items)
    match mark:
        case "float":
            return float(held)
        case "bytes":
            return base64.b64decode(held)
        case "tensor":
            return tensors[held]
        case "array":
            return tensors[held].numpy().reshape(data["shape"])
        case "number":
            return meant(held, tensors)[()]
        case "tuple":
            return tuple(meant(held, tensors))
        case "set":
            return set(meant(held, tensors))
        case "items":
            return {key: meant(item, tensors) for key, item in held}
        case "records":
            return RecordDict({key: meant(item, tensors) for key, item in held})
    raise ValueError(f"a checkpoint has no word '{mark}'")
