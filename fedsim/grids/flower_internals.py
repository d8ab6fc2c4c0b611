"""Every private import from Flower, in one place.

`tests/grids/test_flower_contract.py` fails loudly on a new Flower.

Three things are not in Flower's public API: the identity that `Message()` asks for, the `Run` that a Grid must show and
setting a message's id, which Flower's own link does after a message was made. A fourth, `TensorArray`, leans on the
fields of `Array` so that tensors need not become bytes when nobody looks at the bytes; and `to_record` fills a record
at once, where Flower checks entry by entry what cannot be otherwise here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "SERVER_NODE",
    "Run",
    "TensorArray",
    "as_tensor",
    "empty_run",
    "from_record",
    "set_message_id",
    "take_identity",
    "tensors_in",
    "to_record",
]

SERVER_NODE = 0
"""The node id of the server; clients are 1 to n."""

# Flower's strategies report every round at INFO; fedsim has its own progress.
logging.getLogger("flwr").setLevel(logging.WARNING)


def take_identity(run_id: int) -> None:
    """Let this process create messages, as the server of a run."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE
    TaskIdentity.task_id = 0


def empty_run(run_id: int) -> Run:
    """The description of a run that Flower's Grid interface shows to a ServerApp."""
    return Run.create_empty(run_id)


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message the id that replies refer to."""
    message.metadata.__dict__["_message_id"] = message_id


class TensorArray(Array):
    """A Flower Array that holds a CPU tensor and becomes npy bytes only when someone reads `data`.

    In one process an update then travels without being written out and parsed again (1.5 + 0.9 ms for 62 k parameters).
    The tensor is shared, so it must not be changed after it was put in; `numpy()` is read-only to hold others to that.
    """

    stype = "numpy.ndarray"

    def __init__(self, tensor: Tensor) -> None:
        self.__dict__["tensor"] = (tensor if tensor.is_cpu else tensor.cpu()).detach()

    @property
    def dtype(self) -> str:  # type: ignore[override]
        """As NumPy calls it."""
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The tensor's."""
        return tuple(self.tensor.shape)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The npy bytes, made on first use."""
        if "_bytes" not in self.__dict__:
            self.__dict__["_bytes"] = Array.from_numpy_ndarray(self.tensor.numpy()).data
        data: bytes = self.__dict__["_bytes"]
        return data

    @property
    def tensor(self) -> Tensor:
        """The tensor itself, shared."""
        tensor: Tensor = self.__dict__["tensor"]
        return tensor

    def numpy(self) -> NDArray:
        """A read-only view of the tensor."""
        view: NDArray = self.tensor.numpy().view()
        view.flags.writeable = False
        return view


# In a deployment Flower writes the class's name in front of the bytes, and the other side looks it up among its own.
TensorArray.__qualname__ = "Array"


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors as a Flower ArrayRecord. They are shared, not copied: do not change them afterwards."""
    record = ArrayRecord()
    record.__dict__["_data"].update({name: TensorArray(tensor) for name, tensor in tensors.items()})
    return record


def from_record(record: Mapping[str, Array]) -> dict[str, Tensor]:
    """The tensors of an ArrayRecord, to be read and not written to."""
    return {name: as_tensor(array) for name, array in record.items()}


def tensors_in(content: RecordDict, record: str) -> dict[str, Tensor]:
    """The tensors of one ArrayRecord of a message or of a state; {} if it has none of that name."""
    held = content.get(record)
    return from_record(held) if isinstance(held, ArrayRecord) else {}


def as_tensor(array: Array) -> Tensor:
    """The tensor of an Array. Raises ValueError for bytes that are none."""
    if isinstance(array, TensorArray):
        return array.tensor
    try:
        values = array.numpy()
        return torch.from_numpy(values if values.flags.writeable else np.array(values))
    except Exception as error:  # NumPy's reader tells bad bytes by many a kind: BadZipFile, SyntaxError, MemoryError
        raise ValueError(f"{type(error).__name__}: {error}") from error
