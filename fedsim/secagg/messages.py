"""What the messages of `secagg+` hold: one class for each, written by one half and read by the other.

Every class has `record()`, the ConfigRecord as it travels, and `read(record)`, which raises ProtocolError for a record
that lacks an entry or holds one of another type or length. Whether what it says is right is judged by who reads it.
Bytes stand under names that tell what they are (`keys/cipher`, `encrypted/TO`, `opened/key/OF`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from flwr.app import ConfigRecord

from fedsim.errors import ProtocolError
from fedsim.secagg.base import ROUND
from fedsim.secagg.keys import KEY, NONCE, TAG
from fedsim.secagg.records import by_client, exact_bytes, keys, number, numbers
from fedsim.secagg.shamir import SHARE, check_share

PAIR = NONCE + 2 * SHARE + TAG
"""Bytes of an encrypted pair of shares."""

DIGEST = 32
"""Bytes of a commitment."""

CIPHER_KEY, MASK_KEY = "keys/cipher", "keys/mask"
"""The two public keys of a client: under the first, shares are encrypted to it; from the second, masks are made."""

COMMITMENT = "commitment"
"""What binds a client to its self mask, see `commitment`."""

ENCRYPTED = "encrypted/"
"""With a client behind it: the shares for that client, or (along with a train request) from it."""

OPENED_SELF, OPENED_KEY = "opened/self/", "opened/key/"
"""With a client behind it: one share of the seed of its self mask, or of its private mask key."""


@dataclass(frozen=True)
class KeysQuery:
    """clients: drawn for the round."""

    round: int
    clients: tuple[int, ...]

    def record(self) -> ConfigRecord:
        return ConfigRecord({ROUND: self.round, "clients": list(self.clients)})

    @classmethod
    def read(cls, record: ConfigRecord) -> Self:
        return cls(number(record, ROUND), numbers(record, "clients"))


@dataclass(frozen=True)
class KeysReply:
    """The public keys of a client, X25519, 32 bytes each."""

    round: int
    cipher: bytes
    mask: bytes

    def record(self) -> ConfigRecord:
        return ConfigRecord({ROUND: self.round, CIPHER_KEY: self.cipher, MASK_KEY: self.mask})

    @classmethod
    def read(cls, record: ConfigRecord) -> Self:
        return cls(
            number(record, ROUND),
            exact_bytes(record, CIPHER_KEY, KEY),
            exact_bytes(record, MASK_KEY, KEY),
        )


@dataclass(frozen=True)
class SharesQuery:
    """clients: all that gave keys. neighbours: of the client that is asked; cipher_keys, mask_keys: theirs, in the same
    order. degree: how many neighbours each client has.
    """

    round: int
    clients: tuple[int, ...]
    neighbours: tuple[int, ...]
    cipher_keys: tuple[bytes, ...]
    mask_keys: tuple[bytes, ...]
    threshold: int
    degree: int

    def record(self) -> ConfigRecord:
        return ConfigRecord(
            {
                ROUND: self.round,
                "clients": list(self.clients),
                "neighbours": list(self.neighbours),
                "cipher_keys": list(self.cipher_keys),
                "mask_keys": list(self.mask_keys),
                "threshold": self.threshold,
                "degree": self.degree,
            }
        )

    @classmethod
    def read(cls, record: ConfigRecord) -> Self:
        neighbours = numbers(record, "neighbours")
        return cls(
            number(record, ROUND),
            numbers(record, "clients"),
            neighbours,
            keys(record, "cipher_keys", len(neighbours)),
            keys(record, "mask_keys", len(neighbours)),
            number(record, "threshold"),
            number(record, "degree"),
        )


@dataclass(frozen=True)
class SharesReply:
    """commitment: to the self mask. encrypted: for each neighbour, both of its shares, that only it can read."""

    round: int
    commitment: bytes
    encrypted: Mapping[int, bytes]

    def record(self) -> ConfigRecord:
        return ConfigRecord({ROUND: self.round, COMMITMENT: self.commitment, **_named(ENCRYPTED, self.encrypted)})

    @classmethod
    def read(cls, record: ConfigRecord) -> Self:
        return cls(
            number(record, ROUND),
            exact_bytes(record, COMMITMENT, DIGEST),
            by_client(record, ENCRYPTED),
        )


@dataclass(frozen=True)
class Along:
    """What goes with a train request. encrypted: from each neighbour that gave shares, those for this client. total:
    how many clients gave shares.
    """

    round: int
    total: int
    encrypted: Mapping[int, bytes]

    def record(self) -> ConfigRecord:
        return ConfigRecord(
            {
                ROUND: self.round,
                "survivors": sorted(self.encrypted),
                "total": self.total,
                **_named(ENCRYPTED, self.encrypted),
            }
        )

    @classmethod
    def read(cls, record: ConfigRecord) -> Self:
        encrypted, survivors = by_client(record, ENCRYPTED), numbers(record, "survivors")
        if sorted(survivors) != sorted(encrypted):
            raise ProtocolError("'survivors' are not those whose shares came along")
        return cls(number(record, ROUND), number(record, "total"), encrypted)


@dataclass(frozen=True)
class UnmaskQuery:
    """survivors, dropped: of the neighbours of the client that is asked, and itself. total: how many survivors there
    are in all.
    """

    round: int
    survivors: tuple[int, ...]
    dropped: tuple[int, ...]
    total: int

    def record(self) -> ConfigRecord:
        return ConfigRecord(
            {
                ROUND: self.round,
                "survivors": list(self.survivors),
                "dropped": list(self.dropped),
                "total": self.total,
            }
        )

    @classmethod
    def read(cls, record: ConfigRecord) -> Self:
        return cls(
            number(record, ROUND),
            numbers(record, "survivors"),
            numbers(record, "dropped"),
            number(record, "total"),
        )


@dataclass(frozen=True)
class UnmaskReply:
    """selves: of each survivor, a share of its self mask's seed. keys: of each dropped one, a share of its key. Shares
    that are none are left out when it is read: others may do.
    """

    round: int
    selves: Mapping[int, bytes] = field(repr=False)
    keys: Mapping[int, bytes] = field(repr=False)

    def record(self) -> ConfigRecord:
        return ConfigRecord(
            {ROUND: self.round, **_named(OPENED_SELF, self.selves), **_named(OPENED_KEY, self.keys)},
        )

    @classmethod
    def read(cls, record: ConfigRecord) -> Self:
        selves, keys = (
            {client: share for client, share in by_client(record, prefix).items() if _is_share(client, share)}
            for prefix in (OPENED_SELF, OPENED_KEY)
        )
        return cls(number(record, ROUND), selves, keys)


def commitment(run: int, round_: int, client: int, seed: bytes) -> bytes:
    """SHA-256 over the seed of a self mask, 32 random bytes, and whose it is: hides it, and fits no other."""
    return hashlib.sha256(f"fedsim secagg+ self mask/{run}/{round_}/{client}/".encode() + seed).digest()


def share_header(run: int, round_: int, sender: int, receiver: int, keys: Mapping[int, tuple[bytes, bytes]]) -> bytes:
    """What an encrypted pair of shares is bound to, as associated data. keys: the public cipher and mask keys of both.

    Two clients that were told different keys of each other find out before either sends a vector, whose mask would
    never come off.
    """
    known = hashlib.sha256(b"".join((*keys[sender], *keys[receiver]))).hexdigest()
    return f"shares/{run}/{round_}/{sender}/{receiver}/{known[:32]}".encode()


def doubled(clients: Iterable[int]) -> int | None:
    """The first client that stands twice in a list; None if there is none."""
    seen: set[int] = set()
    for client in clients:
        if client in seen:
            return client
        seen.add(client)
    return None


def _named(prefix: str, values: Mapping[int, bytes]) -> dict[str, bytes]:
    return {f"{prefix}{client}": values[client] for client in sorted(values)}


def _is_share(client: int, share: bytes) -> bool:
    try:
        check_share(client, share)
    except ProtocolError:
        return False
    return True
