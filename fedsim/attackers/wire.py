"""Messages between a run and the process of an attack: a JSON header, and bytes behind it. Nothing is unpickled.

Whoever only passes messages on needs no torch: it is imported where answers are packed.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.adversaries.base import Reconstruction
from fedsim.attackers.base import Failure, Found

if TYPE_CHECKING:
    from torch import Tensor

_LENGTHS = 8
_MOST = 2**40
"""Bytes of a message; whoever announces more is not of this house."""

NONSENSE = Failure("", "the attack's process sent what is no answer")

TENSORS = ("images", "labels", "initial", "raw", "ids")
"""The fields of a reconstruction that are tensors."""


@dataclass(frozen=True)
class Message:
    """header: JSON data. body: what the header says."""

    header: dict[str, Any]
    body: bytes = b""


def send(to: socket.socket, header: Mapping[str, Any], body: bytes = b"") -> None:
    """Send one message. Raises OSError where nobody listens any more."""
    head = json.dumps(header).encode()
    to.sendall(len(head).to_bytes(_LENGTHS, "big") + len(body).to_bytes(_LENGTHS, "big") + head)
    to.sendall(body)


def receive(source: socket.socket) -> Message:
    """Wait for one message. Raises EOFError where the other end is gone, and ValueError where it sent no message."""
    lengths = _exactly(source, 2 * _LENGTHS)
    head, body = int.from_bytes(lengths[:_LENGTHS], "big"), int.from_bytes(lengths[_LENGTHS:], "big")
    if head + body > _MOST:
        raise ValueError("not a message")
    header = json.loads(_exactly(source, head))
    if not isinstance(header, dict):
        raise ValueError("not a message")
    return Message(header, bytes(_exactly(source, body)))


def _exactly(source: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while len(view):
        try:
            got = source.recv_into(view)
        except ConnectionError:
            got = 0
        if not got:
            raise EOFError
        view = view[got:]
    return data


def packed(found: Mapping[str, Found]) -> Message:
    """Answers by name, as a message. One that cannot be written down is a failure."""
    from fedsim.tensorfile import pack

    facts: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for place, (name, one) in enumerate(found.items()):
        try:
            facts[name] = {"failed": [one.kind, one.text]} if isinstance(one, Failure) else _facts(one)
            if not isinstance(one, Failure):
                own = {f"{place}/{key}": getattr(one, key) for key in TENSORS if getattr(one, key) is not None}
                pack(own, {})  # what safetensors cannot hold is this answer's failure and not that of the others
                tensors |= own
        except Exception as error:
            facts[name] = {"failed": [type(error).__name__, str(error)]}
    return Message({"answers": facts}, pack(tensors, {}))


def unpacked(message: Message) -> dict[str, Found]:
    """The same answers again. Raises ValueError, KeyError or TypeError where these are none."""
    from fedsim.tensorfile import unpack

    tensors = unpack(message.body)[0]
    found: dict[str, Found] = {}
    for place, (name, facts) in enumerate(message.header["answers"].items()):
        if "failed" in facts:
            found[name] = Failure(*map(str, facts["failed"]))
            continue
        own = {key: tensors[f"{place}/{key}"] for key in TENSORS if f"{place}/{key}" in tensors}
        history = tuple((step, value) for step, value in facts.pop("history"))
        found[name] = Reconstruction(**{"images": None, "labels": None, "history": history} | facts | own)
    return found


def answers_in(message: Message, names: Sequence[str] | None = None) -> dict[str, Found] | Failure:
    """The answers in a message; NONSENSE where they are none, or others than those `names` that were asked for."""
    try:
        found = unpacked(message)
        if names is not None and list(found) != list(names):
            raise ValueError("not the answers that were asked for")
    except (ValueError, KeyError, TypeError, AttributeError):
        return NONSENSE
    return found


def _facts(found: Reconstruction) -> dict[str, Any]:
    """What is no tensor, as JSON data."""
    facts = {
        "objective": float(found.objective),
        "iterations": int(found.iterations),
        "history": [[int(step), float(value)] for step, value in found.history],
        "status": str(found.status),
        "notes": _plain(found.notes),
    }
    json.dumps(facts)
    return facts


def _plain(value: Any) -> Any:
    """The same with every mapping a dict, which is the only one that JSON knows."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
