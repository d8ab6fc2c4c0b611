"""The stages of a client in a round of `secagg+`: what it holds in each, what it checks, and what comes next.

Unstarted -keys-> Keyed -shares-> Shared -train-> Sealed -unmask-> nothing. Every class has the one transition of its
stage, so a message that comes out of turn meets nobody who could answer it. A client is honest, its server may not be:
whatever an honest server would not ask is refused before any of it is done.

Sources: Bonawitz et al. (CCS 2017), figure 4; Bell et al. (CCS 2020) for the graph.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from flwr.app import ConfigRecord, RecordDict

from fedsim.errors import ProtocolError
from fedsim.secagg import messages, shamir
from fedsim.secagg.base import Contribution, Refused, Terms
from fedsim.secagg.keys import KEY, Context, agree, decrypt, encrypt, new_pair
from fedsim.secagg.pairing import add_pair_mask, add_self_mask, degree_of, share_key
from fedsim.secagg.vectors import sealed

if TYPE_CHECKING:
    from fedsim.secagg.parameters import Parameters
    from fedsim.secagg.plus import SecAggPlus


@dataclass(frozen=True)
class Seat:
    """Which client it is, and in which round of what."""

    settings: SecAggPlus
    terms: Terms
    client: int
    round: int

    @property
    def parameters(self) -> Parameters:
        """Neighbours, threshold and fewest survivors, worked out by the client itself."""
        return self.settings.parameters(self.terms.clients)

    def context(self, drawn: tuple[int, ...]) -> Context:
        """What the keys of this round are bound to."""
        return Context(self.terms.run, self.round, drawn)

    def refusal(self, why: str) -> Refused:
        """The error that ends the round for this client."""
        return Refused(f"client {self.client} refuses in round {self.round}: {why}")

    def demand(self, condition: bool, why: str) -> None:
        """Refuse unless."""
        if not condition:
            raise self.refusal(why)

    def check_round(self, said: int) -> None:
        """Refuse a message of another round."""
        self.demand(said == self.round, f"the message is of round {said}")

    def check_ids(self, ids: Collection[int], known: Iterable[int], where: str) -> None:
        """Refuse ids that are repeated or unknown."""
        twice = messages.doubled(ids)
        self.demand(twice is None, f"client {twice} stands twice among the {where}")
        strange = min(set(ids) - set(known), default=None)
        self.demand(strange is None, f"an unknown client {strange} stands among the {where}")


@dataclass(frozen=True)
class Unstarted:
    """Nothing has been agreed on yet."""

    STAGE: ClassVar[str] = "keys"

    def answer(self, seat: Seat, record: ConfigRecord) -> tuple[ConfigRecord, Keyed]:
        """Two fresh pairs of keys, of which the public halves leave."""
        query = messages.KeysQuery.read(record)
        seat.check_round(query.round)
        seat.check_ids(query.clients, query.clients, "clients that were drawn")
        seat.demand(min(query.clients, default=0) >= 0, "a client's id is negative")
        seat.demand(seat.client in query.clients, "it is not among the clients that were drawn")
        seat.demand(
            len(query.clients) == seat.terms.clients,
            f"{len(query.clients)} clients were drawn, and not {seat.terms.clients}",
        )
        cipher, mask = new_pair(), new_pair()
        drawn = tuple(sorted(query.clients))
        reply = messages.KeysReply(seat.round, cipher.public, mask.public)
        return reply.record(), Keyed(drawn, cipher.private, mask.private, cipher.public, mask.public)


@dataclass(frozen=True)
class Keyed:
    """Has given its public keys. drawn: the clients of the round, in order."""

    STAGE: ClassVar[str] = "shares"

    drawn: tuple[int, ...]
    cipher_private: bytes = field(repr=False)
    mask_private: bytes = field(repr=False)
    cipher_public: bytes
    mask_public: bytes

    def answer(self, seat: Seat, record: ConfigRecord) -> tuple[ConfigRecord, Shared]:
        """The seed of a self mask and the private mask key, shared among the neighbours and the client itself."""
        query = messages.SharesQuery.read(record)
        self._check(seat, query)
        seed = secrets.token_bytes(KEY)
        holders = sorted((*query.neighbours, seat.client))
        of_seed = shamir.split(seed, query.threshold, holders)
        of_key = shamir.split(self.mask_private, query.threshold, holders)
        context, encrypted = seat.context(self.drawn), {}
        keys = known_keys(query.neighbours, query.cipher_keys, query.mask_keys)
        keys[seat.client] = (self.cipher_public, self.mask_public)
        for neighbour in query.neighbours:
            key = share_key(self.cipher_private, keys[neighbour][0], seat.client, neighbour, context)
            header = messages.share_header(seat.terms.run, seat.round, seat.client, neighbour, keys)
            encrypted[neighbour] = encrypt(key, of_seed[neighbour] + of_key[neighbour], header)
        bound = messages.commitment(seat.terms.run, seat.round, seat.client, seed)
        reply = messages.SharesReply(seat.round, bound, encrypted)
        return reply.record(), Shared(
            self.drawn,
            query.neighbours,
            query.cipher_keys,
            query.mask_keys,
            len(query.clients),
            self.cipher_public,
            self.mask_public,
            self.cipher_private,
            self.mask_private,
            seed,
            of_seed[seat.client],
        )

    def _check(self, seat: Seat, query: messages.SharesQuery) -> None:
        agreed, there = seat.parameters, len(query.clients)
        seat.check_round(query.round)
        seat.check_ids(query.clients, self.drawn, "clients that gave keys")
        seat.demand(seat.client in query.clients, "it gave keys, but is not among the clients that did")
        seat.check_ids(query.neighbours, query.clients, "neighbours")
        seat.demand(seat.client not in query.neighbours, "it is called a neighbour of itself")
        seat.demand(
            there >= agreed.min_survivors,
            f"too few clients gave keys: {there}, and {agreed.min_survivors} are needed",
        )
        seat.demand(
            query.threshold == agreed.threshold,
            f"the threshold is said to be {query.threshold}, but it is {agreed.threshold}",
        )
        degree = degree_of(agreed.neighbours, there)
        seat.demand(
            query.degree == degree == len(query.neighbours),
            f"it has {len(query.neighbours)} neighbours of a said {query.degree}, but {degree} are to be",
        )
        seat.demand(
            degree + 1 >= agreed.threshold,
            f"too few clients could hold shares: {degree + 1}, and {agreed.threshold} are needed",
        )
        own = {self.cipher_public, self.mask_public}
        for neighbour, *keys in zip(query.neighbours, query.cipher_keys, query.mask_keys, strict=True):
            seat.demand(not own & set(keys), f"its own public key comes back as one of client {neighbour}")
            for key in keys:
                agree(self.mask_private, key)  # raises for a point that every secret is known with
        twice = len({*query.cipher_keys, *query.mask_keys}) < 2 * len(query.neighbours)
        seat.demand(not twice, "a public key is said to be that of two neighbours, or for two purposes")


@dataclass(frozen=True)
class Shared:
    """Has shared its secrets. neighbours, cipher_keys, mask_keys: in the same order. there: how many gave keys."""

    STAGE: ClassVar[str] = "train"

    drawn: tuple[int, ...]
    neighbours: tuple[int, ...]
    cipher_keys: tuple[bytes, ...]
    mask_keys: tuple[bytes, ...]
    there: int
    cipher_public: bytes
    mask_public: bytes
    cipher_private: bytes = field(repr=False)
    mask_private: bytes = field(repr=False)
    seed: bytes = field(repr=False)
    own_share: bytes = field(repr=False)

    def seal(
        self, seat: Seat, what: Contribution, record: ConfigRecord | None, model: bytes
    ) -> tuple[RecordDict, Sealed]:
        """The masked vector. Of the keys nothing is kept, so that nobody can be asked for them later."""
        along = self._checked(seat, record)
        received = self._decrypted(seat, along)
        vector = seat.settings.codec(seat.terms).encode(what)
        context = seat.context(self.drawn)
        add_self_mask(vector, self.seed, seat.client, context, model, 1)
        for neighbour, public in zip(self.neighbours, self.mask_keys, strict=True):
            if neighbour in received:
                add_pair_mask(vector, self.mask_private, public, seat.client, neighbour, context, model)
        sharers = tuple(sorted(received))
        return sealed(vector), Sealed(
            self.neighbours,
            sharers,
            along.total,
            self.own_share,
            tuple(received[one][: shamir.SHARE] for one in sharers),
            tuple(received[one][shamir.SHARE :] for one in sharers),
        )

    def _checked(self, seat: Seat, record: ConfigRecord | None) -> messages.Along:
        agreed = seat.parameters
        seat.demand(record is not None, "no shares came along with the request to train")
        try:
            along = messages.Along.read(record or ConfigRecord())
        except ProtocolError as error:
            raise seat.refusal(str(error)) from None
        seat.check_round(along.round)
        seat.check_ids(sorted(along.encrypted), self.neighbours, "neighbours that gave shares")
        silent = len(self.neighbours) - len(along.encrypted)
        seat.demand(
            len(along.encrypted) + 1 <= along.total <= self.there - silent,
            f"{along.total} clients are said to have given shares, of {self.there} that gave keys, and {silent} of its "
            "neighbours gave none",
        )
        seat.demand(
            along.total >= agreed.min_survivors,
            f"too few clients gave shares: {along.total}, and {agreed.min_survivors} are needed",
        )
        holders = len(along.encrypted) + 1
        seat.demand(
            holders >= agreed.threshold,
            f"too few clients are left that hold its shares: {holders}, and {agreed.threshold} are needed",
        )
        return along

    def _decrypted(self, seat: Seat, along: messages.Along) -> dict[int, bytes]:
        """By sender: a share of its seed, and one of its key."""
        keys = known_keys(self.neighbours, self.cipher_keys, self.mask_keys)
        keys[seat.client] = (self.cipher_public, self.mask_public)
        context, found = seat.context(self.drawn), {}
        for sender, encrypted in sorted(along.encrypted.items()):
            what = f"what client {sender} encrypted for client {seat.client}"
            header = messages.share_header(seat.terms.run, seat.round, sender, seat.client, keys)
            key = share_key(self.cipher_private, keys[sender][0], seat.client, sender, context)
            try:
                found[sender] = decrypt(key, encrypted, header, what)
            except Refused as error:
                raise seat.refusal(str(error)) from None
            seat.demand(len(found[sender]) == 2 * shamir.SHARE, f"{what} is of a wrong length")
        return found


@dataclass(frozen=True)
class Sealed:
    """Has sent its vector. sharers: the neighbours that gave shares, in order. total: how many clients did. Its own
    keys and seed are gone; what it holds are shares, each of another client's secret but for its own.
    """

    STAGE: ClassVar[str] = "unmask"

    neighbours: tuple[int, ...]
    sharers: tuple[int, ...]
    total: int
    own_share: bytes = field(repr=False)
    of_seeds: tuple[bytes, ...] = field(repr=False)
    of_keys: tuple[bytes, ...] = field(repr=False)

    def answer(self, seat: Seat, record: ConfigRecord) -> tuple[ConfigRecord, None]:
        """Of every survivor a share of its self mask, of every other a share of its key; of nobody both."""
        query = messages.UnmaskQuery.read(record)
        self._check(seat, query)
        seeds = {**dict(zip(self.sharers, self.of_seeds, strict=True)), seat.client: self.own_share}
        keys = dict(zip(self.sharers, self.of_keys, strict=True))
        reply = messages.UnmaskReply(
            seat.round, {one: seeds[one] for one in query.survivors}, {one: keys[one] for one in query.dropped}
        )
        return reply.record(), None

    def _check(self, seat: Seat, query: messages.UnmaskQuery) -> None:
        agreed, survivors, dropped = seat.parameters, set(query.survivors), set(query.dropped)
        seat.check_round(query.round)
        both = min(survivors & dropped, default=None)
        seat.demand(both is None, f"it is asked for both shares of client {both}")
        seat.demand(seat.client not in dropped, "it is told that it dropped out, but it is being asked")
        silent = min((survivors | dropped) & (set(self.neighbours) - set(self.sharers)), default=None)
        seat.demand(silent is None, f"it is asked for a share of client {silent}, which gave none")
        seat.check_ids(query.survivors, (*self.sharers, seat.client), "survivors")
        seat.check_ids(query.dropped, self.sharers, "dropped clients")
        seat.demand(seat.client in survivors, "it sent its vector, but is not among the survivors")
        missing = min(set(self.sharers) - survivors - dropped, default=None)
        seat.demand(missing is None, f"client {missing}, which gave shares, is neither a survivor nor dropped out")
        seat.demand(
            len(survivors) <= query.total <= self.total - len(dropped),
            f"{query.total} clients are said to have survived, of {self.total} that gave shares, and {len(dropped)} of "
            "its neighbours are said to have dropped out",
        )
        seat.demand(
            query.total >= agreed.min_survivors,
            f"too few survivors: {query.total}, and {agreed.min_survivors} are needed",
        )
        seat.demand(
            len(survivors) >= agreed.threshold,
            f"too few survivors among its neighbours and itself: {len(survivors)}, and {agreed.threshold} are needed",
        )


def known_keys(
    clients: Sequence[int], cipher: Sequence[bytes], mask: Sequence[bytes]
) -> dict[int, tuple[bytes, bytes]]:
    """Both public keys of each client."""
    return dict(zip(clients, zip(cipher, mask, strict=True), strict=True))
