"""Tensors out of a message, by names and shapes that are known beforehand; what does not fit is told by its name.

Both ends read by these rules: the server its clients' updates, a client the model that it is sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

import fedsim.grids.flower_internals as flower
from fedsim.errors import ProtocolError

LARGEST = 1e18
"""No coordinate of an update, no parameter and no statistic is beyond it: its square would be beyond float32, and one
such client would be all that is left of a mean."""


def read_tensors(content: RecordDict, record: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The float32 tensors of a record, in the order of `shapes`. To be read and not written to.

    Raises ProtocolError, with the record's and the entry's name, for one that is missing, not asked for, of another
    shape or type, or that holds NaN, an infinity or what is beyond LARGEST.
    """
    held = content.get(record)
    if not isinstance(held, ArrayRecord):
        raise ProtocolError(f"the record '{record}' is missing")
    for name in held:
        if name not in shapes:
            raise ProtocolError(f"{record}/{name} is not a name that the model has")
    out: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name not in held:
            raise ProtocolError(f"{record}/{name} is missing")
        try:
            value = flower.as_tensor(held[name])
        except ValueError as error:
            raise ProtocolError(f"{record}/{name} cannot be read as an array: {error}") from None
        if tuple(value.shape) != shape:
            raise ProtocolError(f"{record}/{name} has shape {tuple(value.shape)}, not {shape}")
        if value.dtype != torch.float32:
            raise ProtocolError(f"{record}/{name} has type {value.dtype}, not torch.float32")
        out[name] = value
    _refuse_unbounded(record, out)
    return out


def _refuse_unbounded(record: str, tensors: Mapping[str, Tensor]) -> None:
    # No entry is larger than the norm, which is quick to have; where it is not small (or NaN), the slow look decides.
    if tensors and not torch.stack(torch._foreach_norm(list(tensors.values()), 2.0)).max() <= LARGEST:
        for name, value in tensors.items():
            if value.numel() and not (most := float(value.abs().max())) <= LARGEST:
                large = "NaN" if math.isnan(most) else "Inf" if math.isinf(most) else f"{most:.3g}"
                raise ProtocolError(f"{record}/{name} holds {large}")
