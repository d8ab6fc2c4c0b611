"""Key pairs, what two of them agree on, keys derived from that for one purpose, and sealed messages.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869) and ChaCha20-Poly1305 (RFC 8439), from the package `cryptography`.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedsim.errors import ProtocolError
from fedsim.secagg.base import Refused

VERSION = b"fedsim secagg 1"
"""First in every derivation: keys of another version of the protocol are other keys."""

KEY = 32
"""Bytes of a key, private, public, agreed or derived."""

NONCE, TAG = 12, 16
"""Bytes in front of and behind a sealed message."""


@dataclass(frozen=True)
class KeyPair:
    """An X25519 key pair, 32 raw bytes each. The private half does not show when printed."""

    private: bytes = field(repr=False)
    public: bytes


def new_pair() -> KeyPair:
    """A fresh pair, from the operating system's randomness."""
    private = X25519PrivateKey.generate()
    return KeyPair(private.private_bytes_raw(), private.public_key().public_bytes_raw())


def agree(private: bytes, public: bytes) -> bytes:
    """The raw secret, 32 bytes, that the owners of two pairs share; not yet a key: see `derive_key`.

    Raises ProtocolError for keys of another length, and for a public point of low order, with which the secret would
    be zero whatever the private key is.
    """
    for name, value in (("private", private), ("public", public)):
        if len(value) != KEY:
            raise ProtocolError(f"a {name} key has {len(value)} bytes, not {KEY}")
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise ProtocolError("a public key is a point of low order, with which nothing can be agreed") from error


def derive_key(secret: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 without a salt: 32 bytes for the one use that `info` describes."""
    return HKDF(SHA256(), KEY, None, info).derive(secret)


@dataclass(frozen=True)
class Context:
    """What a key is bound to: one round of one run, with its clients.

    clients: ids of all clients of the round, each once, in any order. Raises ValueError where one comes twice.
    """

    run: int
    round: int
    clients: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(set(self.clients)) != len(self.clients):
            raise ValueError("a client takes part twice in one round")

    def info(self, purpose: str, first: int, second: int, model: bytes = b"") -> bytes:
        """What HKDF is told of a key between two clients; the same bytes at both ends, whichever comes first.

        Every part has its length in front, so that no two lists of parts read alike. model: `binding` of the broadcast,
        for the masks. As both directions have one key, the header of a sealed message must say who sends it.
        """
        ends = (str(client).encode() for client in sorted((first, second)))
        run, round_ = str(self.run).encode(), str(self.round).encode()
        return _joined(VERSION, run, round_, *ends, purpose.encode(), self._members, hashlib.sha256(model).digest())

    @cached_property
    def _members(self) -> bytes:
        return hashlib.sha256(_joined(*(str(client).encode() for client in sorted(self.clients)))).digest()


def _joined(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def encrypt(key: bytes, plaintext: bytes, header: bytes) -> bytes:
    """A sealed message: a fresh random nonce (12 bytes), the ciphertext, its tag (16 bytes).

    header: what is sent in the clear beside it (who, to whom, when); opening fails with any other.
    """
    nonce = os.urandom(NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plaintext, header)


def decrypt(key: bytes, sealed: bytes, header: bytes, what: str = "a sealed message") -> bytes:
    """What is in a sealed message. Raises Refused, naming `what`, if it, its header or its key is another."""
    if len(sealed) < NONCE + TAG:
        raise Refused(f"{what} is cut short: {len(sealed)} bytes, {NONCE + TAG} at least")
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:NONCE], sealed[NONCE:], header)
    except InvalidTag as error:
        shown = header.decode("ascii", "backslashreplace")
        raise Refused(
            f"{what} was changed on its way, or is of another sender, recipient or round (header '{shown}')"
        ) from error
