"""Entries of a message read back: whatever a record holds, what comes out is of the kind that was asked for."""

from __future__ import annotations

from typing import TypeGuard

from flwr.app import ConfigRecord

from fedsim.errors import ProtocolError
from fedsim.secagg.keys import KEY

LARGEST = 2**63
"""Numbers in messages are below it."""

DIGITS = 19
"""An id in the name of an entry has no more, and is below LARGEST."""


def _is_number(value: object) -> TypeGuard[int]:
    """Whether it is a whole number that a message can carry: True and False are numbers for isinstance, and not all
    that Python counts to fits on the way.
    """
    return type(value) is int and -LARGEST <= value < LARGEST


def number(record: ConfigRecord, key: str) -> int:
    """The whole number under a key. Raises ProtocolError."""
    value = record.get(key)
    if not _is_number(value):
        raise ProtocolError(f"'{key}' is not a whole number")
    return value


def numbers(record: ConfigRecord, key: str) -> tuple[int, ...]:
    """The list of whole numbers under a key. Raises ProtocolError."""
    value = record.get(key)
    if not isinstance(value, list) or not all(_is_number(one) for one in value):
        raise ProtocolError(f"'{key}' is not a list of whole numbers")
    return tuple(value)  # type: ignore[arg-type]


def any_bytes(record: ConfigRecord, key: str) -> bytes:
    """The bytes under a key, however many. Raises ProtocolError."""
    value = record.get(key)
    if not isinstance(value, bytes):
        raise ProtocolError(f"'{key}' is not bytes")
    return value


def exact_bytes(record: ConfigRecord, key: str, length: int) -> bytes:
    """The bytes under a key, so many of them. Raises ProtocolError."""
    value = record.get(key)
    if not isinstance(value, bytes) or len(value) != length:
        raise ProtocolError(f"'{key}' is not {length} bytes")
    return value


def keys(record: ConfigRecord, key: str, count: int) -> tuple[bytes, ...]:
    """The list of `count` keys under a key. Raises ProtocolError."""
    value = record.get(key)
    if not isinstance(value, list) or len(value) != count:
        raise ProtocolError(f"'{key}' is not a list of {count} keys")
    if any(not isinstance(one, bytes) or len(one) != KEY for one in value):
        raise ProtocolError(f"'{key}' holds what is not {KEY} bytes")
    return tuple(value)  # type: ignore[arg-type]


def by_client(record: ConfigRecord, prefix: str) -> dict[int, bytes]:
    """The bytes under `prefix` by client. Raises ProtocolError."""
    found: dict[int, bytes] = {}
    for key, value in record.items():
        if not key.startswith(prefix):
            continue
        client = key.removeprefix(prefix)
        # Python reads no number of thousands of digits, and no client has one.
        digits = len(client) <= DIGITS and client.isascii() and client.isdigit()
        if not digits or str(int(client)) != client or int(client) >= LARGEST or not isinstance(value, bytes):
            raise ProtocolError(f"'{key[:80]}' is not the bytes of a client")
        found[int(client)] = value
    return found
