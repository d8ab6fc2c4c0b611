"""What the server makes of the clients' replies under `secagg+`: which ones it can use, and the secrets in them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeVar

from flwr.app import ConfigRecord

from fedsim.errors import ProtocolError
from fedsim.secagg import messages
from fedsim.secagg.base import Ask, RoundClosed
from fedsim.secagg.keys import Context, agree, new_pair
from fedsim.secagg.pairing import public_of
from fedsim.secagg.shamir import Reconstructor


class _Reply(Protocol):
    @property
    def round(self) -> int: ...
    @classmethod
    def read(cls, record: ConfigRecord) -> Self: ...


R = TypeVar("R", bound=_Reply)


@dataclass(frozen=True)
class Group:
    """Those that agreed on masks. keys, graph: of all that gave keys. commitments: of those that also gave shares."""

    keys: Mapping[int, messages.KeysReply]
    graph: Mapping[int, tuple[int, ...]]
    commitments: Mapping[int, bytes]

    @property
    def clients(self) -> tuple[int, ...]:
        """Those whose masks may be in vectors, in order."""
        return tuple(sorted(self.commitments))

    def holders(self, client: int) -> tuple[int, ...]:
        """Those that a client gave shares, itself among them, in order."""
        return tuple(sorted((*self.graph[client], client)))


@dataclass(frozen=True)
class Secrets:
    """What was opened, in the order of the clients. seeds: of the survivors' self masks. keys: of the others."""

    seeds: Mapping[int, bytes] = field(repr=False)
    keys: Mapping[int, bytes] = field(repr=False)


def replies(ask: Ask, stage: str, queries: Mapping[int, ConfigRecord], kind: type[R], round_: int) -> dict[int, R]:
    """The replies that can be read, in the order of the clients; the first of each that was asked, in this round."""
    found: dict[int, R] = {}
    for client, record in ask(stage, queries):
        try:
            reply = kind.read(record)
        except ProtocolError:
            continue
        if client in queries and client not in found and reply.round == round_:
            found[client] = reply
    return dict(sorted(found.items()))


def usable_keys(given: Mapping[int, messages.KeysReply]) -> dict[int, messages.KeysReply]:
    """Without the clients that share a key with another, which all neighbours would refuse, and without points of low
    order, with which every agreed secret is zero.
    """
    times: dict[bytes, int] = {}
    for reply in given.values():
        for key in (reply.cipher, reply.mask):
            times[key] = times.get(key, 0) + 1
    trial = new_pair()
    return {
        client: reply
        for client, reply in given.items()
        if all(times[key] == 1 and _agrees(trial.private, key) for key in (reply.cipher, reply.mask))
    }


def restored(
    shares: Mapping[int, Mapping[int, bytes]],
    alive: Collection[int],
    group: Group,
    threshold: int,
    context: Context,
) -> Secrets:
    """The secrets that shares are of. shares: of each client's, by holder, at least `threshold`.

    Raises RoundClosed where a secret is not the one that its client is bound to: by its commitment, if it is a seed, or
    by its public key.
    """
    reconstructor = Reconstructor(threshold)
    seeds: dict[int, bytes] = {}
    keys: dict[int, bytes] = {}
    for client in sorted(shares):
        survived = client in alive
        try:
            secret = reconstructor.combine(shares[client])
        except ProtocolError as error:
            raise RoundClosed(f"round {context.round}: the shares of client {client}'s secret: {error}") from None
        if survived:
            fits = messages.commitment(context.run, context.round, client, secret) == group.commitments[client]
        else:
            fits = public_of(secret) == group.keys[client].mask
        if not fits:
            used = ", ".join(map(str, sorted(shares[client])[:threshold]))
            raise RoundClosed(
                f"round {context.round}: a bad share: what clients {used} hold of client {client} does not make the "
                f"{'self mask' if survived else 'key'} that it is bound to"
            )
        (seeds if survived else keys)[client] = secret
    return Secrets(seeds, keys)


def _agrees(private: bytes, public: bytes) -> bool:
    try:
        agree(private, public)
    except ProtocolError:
        return False
    return True
