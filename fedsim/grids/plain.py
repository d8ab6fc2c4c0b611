"""Messages and states as plain data, to travel to another process: tuples, dicts, numbers, bytes and NumPy arrays.

Arrays keep every bit and are not written out: between processes of one machine Ray shares their memory. An array that
is in many messages is sent once: it goes into a bundle, and the messages say its place there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, MetricRecord, RecordDict

from fedsim.grids.flower_internals import TensorArray

Place = Callable[[Array], int | None]
"""An array's place in the bundle; None if it is not in there."""

_RECORDS = {kind.__name__: kind for kind in (ArrayRecord, MetricRecord, ConfigRecord)}
_METADATA = ("run_id", "message_id", "src_node_id", "dst_node_id", "reply_to_message_id", "group_id", "created_at",
             "ttl", "message_type", "src_task_id", "dst_task_id")  # fmt: skip
_SAME_SIZE = {1: torch.uint8, 2: torch.int16}
"""Types of NumPy that stand in for those that it does not have (bfloat16, float8), by their bytes."""


def nowhere(array: Array) -> int | None:
    """There is no bundle."""
    return None


def identity(array: Array) -> int:
    """What two arrays of one memory have in common, as long as both are there."""
    return id(array.tensor) if isinstance(array, TensorArray) else id(array)


def pack_array(array: Array) -> tuple[Any, ...]:
    """An array by itself."""
    if isinstance(array, TensorArray):
        tensor = array.tensor
        try:
            return str(tensor.dtype).removeprefix("torch."), tensor.resolve_neg().resolve_conj().numpy()
        except TypeError:
            other = tensor.view(_SAME_SIZE[tensor.element_size()])
            return str(tensor.dtype).removeprefix("torch."), other.numpy()
    return array.dtype, tuple(array.shape), array.stype, array.data


def unpack_array(packed: tuple[Any, ...], *, copied: bool = False) -> Array:
    """The array again. copied: in memory of its own, instead of the one it travelled in, which is read-only."""
    if len(packed) == 4:
        dtype, shape, stype, data = packed
        return Array(dtype=dtype, shape=tuple(shape), stype=stype, data=data)
    name, values = packed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nobody must write to it is known
        tensor = torch.from_numpy(np.array(values) if copied else values)
    dtype = getattr(torch, name)
    return TensorArray(tensor if tensor.dtype == dtype else tensor.view(dtype))


def pack_content(content: RecordDict, place: Place = nowhere) -> list[tuple[str, str, dict[str, Any]]]:
    """Records, each with its name and kind."""
    out = []
    for name, record in content.items():
        held: dict[str, Any] = dict(record.items())
        if isinstance(record, ArrayRecord):
            held = {key: _packed(array, place) for key, array in record.items()}
        out.append((name, type(record).__name__, held))
    return out


def unpack_content(
    packed: Sequence[tuple[str, str, dict[str, Any]]], bundle: Sequence[Array] = (), *, copied: bool = False
) -> RecordDict:
    """The records again. bundle: the arrays that are sent once."""
    content = RecordDict()
    for name, kind, held in packed:
        if kind == ArrayRecord.__name__:
            record = ArrayRecord()
            for key, one in held.items():
                record[key] = bundle[one] if isinstance(one, int) else unpack_array(one, copied=copied)
            content[name] = record
        else:
            content[name] = _RECORDS[kind](held)
    return content


def pack_message(message: Message, place: Place = nowhere) -> tuple[Any, ...]:
    """A message: its metadata, and its content or its error."""
    metadata = tuple(getattr(message.metadata, name) for name in _METADATA)
    if message.has_error():
        return metadata, None, (message.error.code, message.error.reason)
    return metadata, pack_content(message.content, place), None


def unpack_message(packed: tuple[Any, ...], bundle: Sequence[Array] = (), *, copied: bool = False) -> Message:
    """The message again."""
    values, content, error = packed
    metadata = Metadata(**dict(zip(_METADATA, values, strict=True)))
    if error is not None:
        return Message(error=Error(*error), metadata=metadata)  # type: ignore[call-overload]
    records = unpack_content(content, bundle, copied=copied)
    return Message(content=records, metadata=metadata)  # type: ignore[call-overload]


def _packed(array: Array, place: Place) -> int | tuple[Any, ...]:
    where = place(array)
    return pack_array(array) if where is None else where
