"""What both halves of `secagg+` work out alike: the masks of a pair and of a client by itself, keys, degrees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsim.secagg.keys import KEY, Context, agree, derive_key
from fedsim.secagg.masks import add_mask

BASE_POINT = bytes([9]) + bytes(KEY - 1)
"""The point of X25519 that a private key is multiplied with to have its public key (RFC 7748, section 4.1)."""


def public_of(private: bytes) -> bytes:
    """The public key of a private one, 32 bytes each."""
    return agree(private, BASE_POINT)


def degree_of(neighbours: int, clients: int) -> int:
    """How many neighbours each of `clients` has where `neighbours` are asked for: all the others if there are no more,
    and one more where both numbers are odd, as no graph has those.
    """
    degree = min(neighbours, clients - 1)
    return degree + 1 if degree % 2 and clients % 2 else degree


def share_key(private: bytes, public: bytes, own: int, other: int, context: Context) -> bytes:
    """The key, 32 bytes, under which two clients send each other shares, from one's private and the other's public
    cipher key.
    """
    return derive_key(agree(private, public), context.info("shares", own, other))


def add_pair_mask(
    vector: NDArray[np.unsignedinteger],
    private: bytes,
    public: bytes,
    own: int,
    other: int,
    context: Context,
    model: bytes,
) -> None:
    """Add, in place, the mask that client `own` shares with client `other`: what the one adds, the other subtracts.

    private: mask key of `own`. public: of `other`. model: `binding` of the broadcast. A server that has the key of a
    client that dropped out adds the masks in its place, so that they cancel.
    """
    seed = derive_key(agree(private, public), context.info("pair", own, other, model))
    add_mask(vector, seed, 1 if own < other else -1)


def add_self_mask(
    vector: NDArray[np.unsignedinteger], seed: bytes, client: int, context: Context, model: bytes, sign: int
) -> None:
    """Add (sign 1) or take off (sign -1), in place, the mask that a client made by itself. seed: 32 random bytes."""
    add_mask(vector, derive_key(seed, context.info("self", client, client, model)), sign)
