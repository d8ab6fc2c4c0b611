"""The server's half of `secagg+`: an honest server that adds masked vectors and takes the masks off their sum.

Sources: Bonawitz et al. (CCS 2017), figure 4; Bell et al. (CCS 2020) for the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, RecordDict

from fedsim.secagg import messages
from fedsim.secagg.base import Ask, RoundClosed, Terms, Total
from fedsim.secagg.graph import neighbours
from fedsim.secagg.keys import Context
from fedsim.secagg.pairing import add_pair_mask, add_self_mask, degree_of
from fedsim.secagg.vectors import Addition, RingSum
from fedsim.server.unmasking_replies import Group, Secrets, replies, restored, usable_keys

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedsim.secagg.plus import SecAggPlus


class PairwiseUnmasking:
    """One round of `secagg+`, stage by stage. A stage that too few clients pass closes the round.

    A client may leave at any stage. What happens then does not depend on which one it was: those left before training
    are no part of the sum, those after it are in it. The sum does not depend on the order in which anything arrives.
    """

    def __init__(self, settings: SecAggPlus, terms: Terms, round_: int, clients: Iterable[int], model: bytes) -> None:
        self._clients = tuple(sorted(clients))
        self._terms, self._round, self._model = terms, round_, model
        self._agreed = settings.parameters(terms.clients)
        self._codec = settings.codec(terms)
        self._context = Context(terms.run, round_, self._clients)
        # Who is still there after "shares", and the sum of their vectors: nobody and none before `prepare`.
        self._group = Group({}, {}, {})
        self._sum: RingSum | None = None

    def prepare(self, ask: Ask) -> Mapping[int, ConfigRecord | None]:
        """Keys and shares; what goes along with the train request of each client that is left. Raises RoundClosed."""
        keys = self._keys(ask)
        graph = neighbours(sorted(keys), degree_of(self._agreed.neighbours, len(keys)))
        shared = self._shares(ask, keys, graph)
        self._group = Group(keys, graph, {client: reply.commitment for client, reply in shared.items()})
        self._sum = RingSum(self._codec, shared)
        return {
            client: messages.Along(
                self._round,
                len(shared),
                {sender: shared[sender].encrypted[client] for sender in graph[client] if sender in shared},
            ).record()
            for client in sorted(shared)
        }

    def take(self, client: int, content: RecordDict) -> None:
        """Add one masked vector. Raises ProtocolError; the sum is as it was then."""
        self._ring().add(client, content)

    def open(self, ask: Ask) -> Total:
        """Have the secrets that are needed opened, take off the masks, and read the sum. Raises RoundClosed.

        Every secret is restored and checked before any mask is taken off.
        """
        ring, group = self._ring(), self._group
        survivors = ring.close()
        self._require(len(survivors), "sent their vectors")
        for client in group.clients:
            self._hold(client, sum(holder in survivors for holder in group.holders(client)))
        found = self._secrets(ask, survivors)
        ring.apply(list(self._masks(found)))
        return self._codec.decode(ring.value, survivors)

    def _masks(self, found: Secrets) -> Iterator[Addition]:
        """What takes off every mask that is left on the sum."""
        for client, seed in found.seeds.items():
            yield partial(self._without_self, client, seed)
        for client, private in found.keys.items():
            for other in self._group.graph[client]:
                if other in found.seeds:
                    yield partial(self._with_dropped, client, private, other)

    def _without_self(self, client: int, seed: bytes, vector: NDArray[np.unsignedinteger]) -> None:
        add_self_mask(vector, seed, client, self._context, self._model, -1)

    def _with_dropped(self, client: int, private: bytes, other: int, vector: NDArray[np.unsignedinteger]) -> None:
        """What the client that dropped out would have added, so that the other's mask is cancelled."""
        add_pair_mask(vector, private, self._group.keys[other].mask, client, other, self._context, self._model)

    def _keys(self, ask: Ask) -> dict[int, messages.KeysReply]:
        """The public keys of those that gave any that can be used."""
        query = messages.KeysQuery(self._round, self._clients).record()
        given = replies(ask, "keys", dict.fromkeys(self._clients, query), messages.KeysReply, self._round)
        keys = usable_keys(given)
        self._require(len(keys), "gave keys")
        return keys

    def _shares(
        self, ask: Ask, keys: Mapping[int, messages.KeysReply], graph: Mapping[int, tuple[int, ...]]
    ) -> dict[int, messages.SharesReply]:
        """Encrypted shares of those that gave them to all of their neighbours, and whose own enough neighbours hold."""
        threshold = self._agreed.threshold
        queries = {
            client: messages.SharesQuery(
                self._round,
                tuple(sorted(keys)),
                near,
                tuple(keys[other].cipher for other in near),
                tuple(keys[other].mask for other in near),
                threshold,
                len(near),
            ).record()
            for client, near in sorted(graph.items())
        }
        shared = {
            client: reply
            for client, reply in replies(ask, "shares", queries, messages.SharesReply, self._round).items()
            if set(reply.encrypted) == set(graph[client])
            and all(len(one) == messages.PAIR for one in reply.encrypted.values())
        }
        self._require(len(shared), "gave shares")
        # Without a client, its neighbours have one holder less, and may have to go as well.
        while lonely := [one for one in shared if sum(near in shared for near in graph[one]) + 1 < threshold]:
            for client in lonely:
                del shared[client]
        self._require(len(shared), "have neighbours enough that gave shares")
        return shared

    def _secrets(self, ask: Ask, survivors: tuple[int, ...]) -> Secrets:
        """The seeds of the survivors, and the private mask keys of the others: one secret of everybody, never both."""
        group, alive = self._group, set(survivors)
        queries = {}
        for client in survivors:
            circle = [one for one in group.holders(client) if one in group.commitments]
            queries[client] = messages.UnmaskQuery(
                self._round,
                tuple(one for one in circle if one in alive),
                tuple(one for one in circle if one not in alive),
                len(survivors),
            ).record()
        opened = replies(ask, "unmask", queries, messages.UnmaskReply, self._round)
        shares = {
            client: {
                holder: given[client]
                for holder in group.holders(client)
                if holder in opened
                and client in (given := opened[holder].selves if client in alive else opened[holder].keys)
            }
            for client in group.clients
        }
        for client, held in shares.items():
            self._hold(client, len(held))
        return restored(shares, alive, group, self._agreed.threshold, self._context)

    def _ring(self) -> RingSum:
        if self._sum is None:
            raise RoundClosed(f"round {self._round}: no clients have agreed on masks")
        return self._sum

    def _require(self, count: int, did: str) -> None:
        """Close the round if too few clients did something."""
        if count < self._agreed.min_survivors:
            raise RoundClosed(
                f"round {self._round}: {count} of {len(self._clients)} clients {did}, and "
                f"{self._agreed.min_survivors} are needed"
            )

    def _hold(self, client: int, holders: int) -> None:
        """Close the round if too few clients can help to restore a secret."""
        if holders < self._agreed.threshold:
            raise RoundClosed(
                f"round {self._round}: {holders} shares of client {client}'s secret are left, and "
                f"{self._agreed.threshold} are needed"
            )
