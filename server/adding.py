"""The server's half of `ckks`: passes on keys that it cannot read, adds ciphertexts, and has the sum decrypted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict

import fedsim.grids.flower_internals as flower
from fedsim.errors import ProtocolError
from fedsim.secagg.base import ROUND, SEALED, Ask, RoundClosed, Terms, Total
from fedsim.secagg.ciphertexts import PublicContext, add, framed
from fedsim.secagg.dealing import CIPHERTEXT, Along, Dealt, Members, Opened, PublicKey, Sum
from fedsim.secagg.slots import Slots, Vector

if TYPE_CHECKING:
    from fedsim.secagg.ckks import CKKS


class HomomorphicUnmasking:
    """Holds one sum of ciphertexts however many clients there are. The dealer, and who decrypts, is the client of the
    lowest number that answers.
    """

    def __init__(self, settings: CKKS, terms: Terms, round_: int, clients: Iterable[int], model: bytes) -> None:
        self._settings, self._round = settings, round_
        self._clients = tuple(sorted(clients))
        self._slots = Slots(terms, settings.largest)
        self._context = PublicContext(settings)
        self._expected: frozenset[int] = frozenset()
        self._arrived: set[int] = set()
        self._sum: list[Any] | None = None

    def prepare(self, ask: Ask) -> Mapping[int, ConfigRecord | None]:
        """Have keys given, and the round's secret key dealt: each client's own copy, that only it can read.

        Raises RoundClosed where too few clients are left.
        """
        publics: dict[int, bytes] = {}
        for client, reply in ask("keys", {client: ConfigRecord({ROUND: self._round}) for client in self._clients}):
            public = self._public(reply)
            if client in self._clients and public is not None and public not in publics.values():
                publics[client] = public
        while True:
            self._enough(len(publics), "gave keys")
            dealer = min(publics)
            dealt = self._dealt(dealer, publics, ask)
            if dealt is not None:
                break
            del publics[dealer]
        clients = tuple(sorted(publics))
        self._expected = frozenset(clients)
        along: dict[int, ConfigRecord | None] = {dealer: None}
        for client, encrypted in dealt.encrypted.items():
            along[client] = Along(self._round, clients, dealer, publics[dealer], client, encrypted).record()
        return along

    def take(self, client: int, content: RecordDict) -> None:
        """Add the ciphertexts of one client. Raises ProtocolError; the sum is as it was then."""
        if client not in self._expected:
            raise ProtocolError(f"client {client} was not to send ciphertexts in this round, or not any more")
        if client in self._arrived:
            raise ProtocolError(f"client {client} sent a second update in the same round")
        try:
            value = flower.tensors_in(content, SEALED).get(CIPHERTEXT)
        except ValueError as error:
            raise ProtocolError(f"{SEALED}/{CIPHERTEXT} cannot be read as an array: {error}") from None
        if value is None:
            raise ProtocolError(f"{SEALED}/{CIPHERTEXT} is missing")
        if value.dtype != torch.uint8 or value.dim() != 1:
            raise ProtocolError(f"{SEALED}/{CIPHERTEXT} is not a row of bytes")
        try:
            more = self._context.read(value.contiguous().numpy().data, self._slots.size)
        except ProtocolError as problem:
            raise ProtocolError(f"{SEALED}/{CIPHERTEXT}: {problem}") from problem
        if self._sum is None:
            self._sum = more
        else:
            add(self._sum, more)
        self._arrived.add(client)

    def open(self, ask: Ask) -> Total:
        """Ask one survivor after the other to decrypt the sum, until one does. Raises RoundClosed where too few are
        left, where nobody does, and where what comes back is no sum of theirs.
        """
        self._expected = frozenset()
        survivors = tuple(sorted(self._arrived))
        self._enough(len(survivors), "sent an update")
        assert self._sum is not None
        ciphertext = framed(vector.serialize() for vector in self._sum)
        query = Sum(self._round, survivors, bytes(ciphertext)).record()
        for client in survivors:
            for _, reply in ask("decrypt", {client: query}):
                values = self._values(reply)
                if values is not None:
                    return self._slots.decode(values, survivors)
        raise RoundClosed(f"none of the {len(survivors)} clients that are left has decrypted the sum")

    def _public(self, reply: ConfigRecord) -> bytes | None:
        try:
            found = PublicKey.read(reply)
        except ProtocolError:
            return None
        return found.public if found.round == self._round else None

    def _dealt(self, dealer: int, publics: Mapping[int, bytes], ask: Ask) -> Dealt | None:
        """What the dealer gave; None where it gave nothing that could be used."""
        query = Members(self._round, publics).record()
        for client, reply in ask("shares", {dealer: query}):
            try:
                dealt = Dealt.read(reply, publics.keys() - {dealer})
            except ProtocolError:
                continue
            if client == dealer and dealt.round == self._round:
                return dealt
        return None

    def _values(self, reply: ConfigRecord) -> Vector | None:
        try:
            opened = Opened.read(reply, self._slots.size)
        except ProtocolError:
            return None
        return np.frombuffer(opened.values, "<f8").astype(np.float64) if opened.round == self._round else None

    def _enough(self, clients: int, did: str) -> None:
        needed = self._settings.min_survivors
        if clients < needed:
            raise RoundClosed(f"{clients} of {len(self._clients)} clients {did}, and {needed} are needed")
