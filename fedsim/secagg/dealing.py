"""What the messages of `ckks` hold: one class for each, written by one half and read by the other.

Every class has `record()`, the ConfigRecord as it travels, and `read(record)`, which raises ProtocolError for a record
that lacks an entry or holds one of another type or length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from flwr.app import ConfigRecord

from fedsim.errors import ProtocolError
from fedsim.secagg import records
from fedsim.secagg.base import ROUND
from fedsim.secagg.keys import KEY, Context, agree, derive_key

CIPHERTEXT = "ciphertext"
"""The one entry of the record SEALED, one-dimensional, uint8: ciphertexts, each with its length in front."""

PUBLIC, ENCRYPTED = "keys/cipher", "encrypted/"
"""A client's public key; and, with a client behind it, the round's secret key that only that client can read."""


@dataclass(frozen=True)
class PublicKey:
    """The reply to `keys`. public: X25519, 32 bytes."""

    round: int
    public: bytes

    def record(self) -> ConfigRecord:
        return ConfigRecord({ROUND: self.round, PUBLIC: self.public})

    @classmethod
    def read(cls, record: ConfigRecord) -> Self:
        return cls(_round(record), records.exact_bytes(record, PUBLIC, KEY))


@dataclass(frozen=True)
class Members:
    """The query `shares`, to the dealer: the public key of every client that takes part, the dealer's included."""

    round: int
    publics: Mapping[int, bytes]

    def record(self) -> ConfigRecord:
        clients = sorted(self.publics)
        return ConfigRecord(
            {ROUND: self.round, "clients": clients, "publics": [self.publics[client] for client in clients]}
        )

    @classmethod
    def read(cls, record: ConfigRecord) -> Self:
        clients = _clients(record)
        found = records.keys(record, "publics", len(clients))
        if len(set(found)) != len(clients):
            raise ProtocolError(f"'publics' is not a list of keys of {KEY} bytes, each another")
        return cls(_round(record), dict(zip(clients, found, strict=True)))


@dataclass(frozen=True)
class Dealt:
    """The dealer's reply to `shares`: the round's secret key, encrypted to every other client."""

    round: int
    encrypted: Mapping[int, bytes] = field(repr=False)

    def record(self) -> ConfigRecord:
        named = {f"{ENCRYPTED}{client}": self.encrypted[client] for client in sorted(self.encrypted)}
        return ConfigRecord({ROUND: self.round, **named})

    @classmethod
    def read(cls, record: ConfigRecord, clients: set[int]) -> Self:
        """clients: who must be dealt to."""
        return cls(
            _round(record), {client: records.any_bytes(record, f"{ENCRYPTED}{client}") for client in sorted(clients)}
        )


@dataclass(frozen=True)
class Along:
    """What goes with a train request: the round's secret key for client `to`. clients: all that take part."""

    round: int
    clients: tuple[int, ...]
    dealer: int
    public: bytes
    to: int
    encrypted: bytes = field(repr=False)

    def record(self) -> ConfigRecord:
        return ConfigRecord(
            {
                ROUND: self.round,
                "clients": list(self.clients),
                "dealer": self.dealer,
                PUBLIC: self.public,
                f"{ENCRYPTED}{self.to}": self.encrypted,
            }
        )

    @classmethod
    def read(cls, record: ConfigRecord, to: int) -> Self:
        return cls(
            _round(record),
            _clients(record),
            records.number(record, "dealer"),
            records.exact_bytes(record, PUBLIC, KEY),
            to,
            records.any_bytes(record, f"{ENCRYPTED}{to}"),
        )


@dataclass(frozen=True)
class Sum:
    """The query `decrypt`: the sum of the ciphertexts of `clients`."""

    round: int
    clients: tuple[int, ...]
    ciphertext: bytes = field(repr=False)

    def record(self) -> ConfigRecord:
        return ConfigRecord({ROUND: self.round, "clients": list(self.clients), CIPHERTEXT: self.ciphertext})

    @classmethod
    def read(cls, record: ConfigRecord) -> Self:
        return cls(_round(record), _clients(record), records.any_bytes(record, CIPHERTEXT))


@dataclass(frozen=True)
class Opened:
    """The reply to `decrypt`. values: float64, little-endian, with noise that covers the ciphertext's error."""

    round: int
    values: bytes = field(repr=False)

    def record(self) -> ConfigRecord:
        return ConfigRecord({ROUND: self.round, "values": self.values})

    @classmethod
    def read(cls, record: ConfigRecord, size: int) -> Self:
        """size: how many values there must be."""
        return cls(_round(record), records.exact_bytes(record, "values", 8 * size))


def dealing_key(private: bytes, public: bytes, own: int, other: int, context: Context) -> bytes:
    """The key, 32 bytes, under which a dealer sends another client the round's secret key."""
    return derive_key(agree(private, public), context.info("ckks key", own, other))


def dealing_header(run: int, round_: int, dealer: int, to: int) -> bytes:
    """What an encrypted secret key is bound to, as associated data."""
    return f"fedsim ckks key/{run}/{round_}/{dealer}/{to}".encode()


def _round(record: ConfigRecord) -> int:
    return records.number(record, ROUND)


def _clients(record: ConfigRecord) -> tuple[int, ...]:
    found = records.numbers(record, "clients")
    if len(set(found)) != len(found):
        raise ProtocolError("'clients' holds a client twice")
    return found
