"""What one client and the server said to each other in one round, kept until the round is over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

import fedsim.grids.flower_internals as flower
from fedsim.secagg.base import RECORD, SEALED

PATHS = {"keys": "keys", "shares": "encrypted", "unmask": "opened"}
"""Below which path an observation holds what a client answers at a stage of a secure aggregation."""

SIGHTS = {"keys": "encrypted_shares", "shares": "encrypted_shares", "unmask": "opened_shares"}
"""The word of the threat model for it."""


@dataclass
class Exchange:
    """request: the train request. reply: to it; None while there is none. answers: to queries, by stage."""

    request: RecordDict | None = None
    reply: RecordDict | None = None
    answers: dict[str, RecordDict] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0

    def sealed(self, sees: frozenset[str]) -> dict[str, Tensor]:
        """Of a secure aggregation's messages what `sees` has words for: the masked vector, and the other stages' bytes
        as uint8 tensors.
        """
        out: dict[str, Tensor] = {}
        if "masked_update" in sees and self.reply is not None:
            out.update({f"masked/{name}": value for name, value in flower.tensors_in(self.reply, SEALED).items()})
        for stage, content in self.answers.items():
            record = content.get(RECORD)
            if SIGHTS.get(stage) in sees and isinstance(record, ConfigRecord):
                for name, data in _bytes(record):
                    value = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0).byte()
                    out[name if name.startswith(f"{PATHS[stage]}/") else f"{PATHS[stage]}/{name}"] = value
        return out


def size(content: RecordDict) -> int:
    """Bytes of the tensors in a message, and of a secure aggregation: its length on the wire but for headers."""
    out = 0
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            out += sum(value.numel() * value.element_size() for value in flower.from_record(record).values())
        elif name == RECORD and isinstance(record, ConfigRecord):
            out += sum(len(data) for _, data in _bytes(record))
    return out


def _bytes(record: ConfigRecord) -> Iterator[tuple[str, bytes]]:
    for name, value in record.items():
        if isinstance(value, bytes):
            yield name, value
        elif isinstance(value, list):
            yield from ((f"{name}/{place}", item) for place, item in enumerate(value) if isinstance(item, bytes))
