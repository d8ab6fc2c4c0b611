"""The client's half of `ckks`: one client deals a secret key, all encrypt under it, one decrypts the sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict

import fedsim.grids.flower_internals as flower
from fedsim.errors import ProtocolError
from fedsim.secagg.base import SEALED, Contribution, Refused, Terms
from fedsim.secagg.ciphertexts import SecretContext, covered, fresh_key
from fedsim.secagg.dealing import (
    CIPHERTEXT,
    Along,
    Dealt,
    Members,
    Opened,
    PublicKey,
    Sum,
    dealing_header,
    dealing_key,
)
from fedsim.secagg.keys import Context, decrypt, encrypt, new_pair
from fedsim.secagg.slots import Slots

if TYPE_CHECKING:
    from fedsim.secagg.ckks import CKKS

_PRIVATE, _PUBLIC, _KEY, _SEALED = "private", "public", "key", "sealed"


class HomomorphicMasking:
    """Remembers its key pair, then the round's secret key, and whether it has sent its update; nothing once it has
    decrypted, so that it does so once.
    """

    def __init__(self, settings: CKKS, terms: Terms, client: int, round_: int, memory: ConfigRecord) -> None:
        self._settings, self._terms, self._client, self._round = settings, terms, client, round_
        self._slots = Slots(terms, settings.largest)
        self.memory = memory

    def answer(self, stage: str, query: ConfigRecord) -> ConfigRecord:
        """A public key (`keys`), the secret key encrypted to all others (`shares`, of the dealer), or the decrypted sum
        (`decrypt`). Raises Refused.
        """
        answers = {"keys": self._keys, "shares": self._deal, "decrypt": self._decrypt}
        if stage not in answers:
            raise self._refusal(f"asked for '{stage}', which 'ckks' has not")
        try:
            return answers[stage](query)
        except Refused:
            raise
        except ProtocolError as problem:
            raise self._refusal(str(problem)) from problem

    def seal(self, what: Contribution, along: ConfigRecord | None, model: bytes) -> RecordDict:
        """The ciphertexts of a contribution. Raises Refused, and ProtocolError for what cannot be summed.

        model is not used: this mode cannot tell whether all clients were sent the same one.
        """
        if _SEALED in self.memory:
            raise self._refusal("has sent its update of this round already")
        key = self._key(along)
        sealed = SecretContext(self._settings, key).encrypt(self._slots.encode(what))
        self.memory = ConfigRecord({_KEY: key, _SEALED: 1})
        values = torch.from_numpy(np.frombuffer(sealed, np.uint8))
        return RecordDict({SEALED: flower.to_record({CIPHERTEXT: values})})

    def _keys(self, query: ConfigRecord) -> ConfigRecord:
        self._this_round(query.get("round"))
        if self.memory:
            raise self._refusal("has given its key for this round already")
        pair = new_pair()
        self.memory = ConfigRecord({_PRIVATE: pair.private, _PUBLIC: pair.public})
        return PublicKey(self._round, pair.public).record()

    def _deal(self, query: ConfigRecord) -> ConfigRecord:
        members = Members.read(query)
        self._this_round(members.round)
        if _PRIVATE not in self.memory or _KEY in self.memory:
            raise self._refusal("deals one key in a round, after it has given its own")
        if members.publics.get(self._client) != self.memory[_PUBLIC]:
            raise self._refusal("is not among the clients that it is to deal to, with the key that it gave")
        self._enough(len(members.publics), "take part")
        key, context = fresh_key(self._settings), self._context(tuple(members.publics))
        encrypted = {
            client: encrypt(
                dealing_key(self.memory[_PRIVATE], public, self._client, client, context),  # type: ignore[arg-type]
                key,
                dealing_header(self._terms.run, self._round, self._client, client),
            )
            for client, public in members.publics.items()
            if client != self._client
        }
        self.memory = ConfigRecord({_KEY: key})
        return Dealt(self._round, encrypted).record()

    def _key(self, along: ConfigRecord | None) -> bytes:
        """The round's secret key: the one that this client dealt, or was dealt."""
        held = self.memory.get(_KEY)
        if along is None and isinstance(held, bytes):
            return held
        if along is None or held is not None or _PRIVATE not in self.memory:
            raise self._refusal("has been dealt no key for this round, or two")
        dealt = Along.read(along, self._client)
        self._this_round(dealt.round)
        self._enough(len(dealt.clients), "take part")
        if not {self._client, dealt.dealer} <= set(dealt.clients) or dealt.dealer == self._client:
            raise self._refusal(f"is not among the clients that client {dealt.dealer} deals to")
        private, context = self.memory[_PRIVATE], self._context(dealt.clients)
        return decrypt(
            dealing_key(private, dealt.public, self._client, dealt.dealer, context),  # type: ignore[arg-type]
            dealt.encrypted,
            dealing_header(self._terms.run, self._round, dealt.dealer, self._client),
            f"the round's key from client {dealt.dealer}",
        )

    def _decrypt(self, query: ConfigRecord) -> ConfigRecord:
        asked = Sum.read(query)
        self._this_round(asked.round)
        key = self.memory.get(_KEY)
        if not isinstance(key, bytes) or _SEALED not in self.memory:
            raise self._refusal("decrypts once in a round, after it has sent its own update")
        if self._client not in asked.clients:
            raise self._refusal("its own update is not in the sum that it is to decrypt")
        self._enough(len(asked.clients), "are in the sum")
        values = SecretContext(self._settings, key).decrypt(memoryview(asked.ciphertext), self._slots.size)
        found = self._slots.numbers(values)
        if found is None or found[0] != len(asked.clients):
            says = "nothing that it could read" if found is None else f"the updates of {found[0]}"
            raise self._refusal(f"the sum of {len(asked.clients)} clients holds {says}")
        self.memory = ConfigRecord()
        noisy = covered(values, self._settings.noise(self._terms.clients))
        return Opened(self._round, noisy.astype("<f8").tobytes()).record()

    def _context(self, clients: tuple[int, ...]) -> Context:
        return Context(self._terms.run, self._round, clients)

    def _this_round(self, said: object) -> None:
        if said != self._round:
            raise self._refusal(f"was asked in round {said}, but it is round {self._round}")

    def _enough(self, clients: int, do: str) -> None:
        if clients < self._settings.min_survivors:
            raise self._refusal(f"only {clients} clients {do}, and {self._settings.min_survivors} are needed")

    def _refusal(self, why: str) -> Refused:
        return Refused(f"client {self._client}: {why}")
