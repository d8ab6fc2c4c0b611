"""Judges: of a sum, and of what honest clients have given to a malicious server. No test is in here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ConfigRecord
from secagg.driving import expected
from secagg.parties import terms_of, update_of
from secagg.sequences import Script, Violation

from fedsim.errors import ProtocolError
from fedsim.secagg.base import Total
from fedsim.secagg.messages import OPENED_KEY, OPENED_SELF
from fedsim.secagg.shamir import Reconstructor

OWN = ("cipher_private", "mask_private", "seed")
"""What a client made itself, and never sends: by its name in the client's memory."""

Shares = dict[tuple[int, int], dict[int, bytes]]
"""By round and by whose secret it is: the shares, by who opened them."""


def judge(total: Total, script: Script, sealed: Collection[int]) -> None:
    """A sum is that of those who are said to be in it; these are enough, and have sent vectors. Raises Violation.

    sealed: the clients that have.
    """
    settings, terms = script.settings, terms_of(script.clients)
    if list(total.clients) != sorted(set(total.clients)) or not set(total.clients) <= set(sealed):
        raise Violation(f"a sum is said to be of {total.clients}, but vectors were sent by {sorted(sealed)}")
    if len(total.clients) < (least := settings.parameters(script.clients).min_survivors):
        raise Violation(f"a sum of {len(total.clients)} was opened, and {least} are needed")
    right = expected(settings, terms, {one: update_of(one) for one in total.clients}, total.clients)
    if total.sealed.dtype != right.dtype or not np.array_equal(total.sealed, right):
        raise Violation(f"wrong: the sum is not that of {total.clients}")
    if total.examples != sum(update_of(one).examples for one in total.clients):
        raise Violation(f"wrong: {total.examples} examples of {total.clients}")


class Watch:
    """Of every secret the shares that are open, and the secrets themselves to compare with."""

    def __init__(self) -> None:
        self.of_seeds: Shares = defaultdict(dict)
        self.of_keys: Shares = defaultdict(dict)
        self.secrets: dict[tuple[int, int], dict[str, bytes]] = defaultdict(dict)

    def answered(
        self,
        stage: str,
        round_: int,
        client: int,
        reply: ConfigRecord,
        before: Mapping[str, Any],
        now: Mapping[str, Any],
    ) -> None:
        """A reply. before, now: the client's memory when it was asked, and afterwards. Raises Violation."""
        self.secrets[round_, client] |= {name: now[name] for name in OWN if name in now}
        values = [value for value in reply.values() if isinstance(value, bytes)]
        self._nothing_own(client, values, f"replies to '{stage}' with")
        if stage == "unmask":
            self._opened(round_, client, reply, before)
            left = [name for name in (*OWN, "own_share", "of_seeds", "of_keys") if name in now]
            if left:
                raise Violation(f"client {client} has helped to unmask, and still holds {left}")

    def sealed(self, round_: int, client: int, now: Mapping[str, Any]) -> None:
        """A vector was sent. now: the client's memory afterwards. Raises Violation."""
        self._nothing_own(client, now.values(), "has sent its vector, and still holds")

    def corrupt(self, round_: int, client: int, now: Mapping[str, Any]) -> None:
        """A client that works with the server gives it everything that it holds."""
        for dealer, of_seed, of_key in zip(now["sharers"], now["of_seeds"], now["of_keys"], strict=True):
            self.of_seeds[round_, dealer][client] = of_seed
            self.of_keys[round_, dealer][client] = of_key

    def split(self, at_least: int = 1) -> list[tuple[int, int]]:
        """(round, client) of which so many shares of both secrets are open."""
        return [
            one for one in self.of_seeds if min(len(self.of_seeds[one]), len(self.of_keys.get(one, ()))) >= at_least
        ]

    def read(self) -> list[tuple[int, int]]:
        """(round, client) of which both secrets are restored from the shares that are open, whatever threshold the
        client was brought to deal them with.
        """
        return [
            one
            for one in self.split()
            if _restored(self.of_seeds[one]) == self.secrets[one].get("seed", b"")
            and _restored(self.of_keys[one]) == self.secrets[one].get("mask_private", b"")
        ]

    def _opened(self, round_: int, client: int, reply: ConfigRecord, before: Mapping[str, Any]) -> None:
        """By the bytes: whose share is whose is what the client held, whatever name it is given under."""
        sharers, values = before["sharers"], {value for value in reply.values() if isinstance(value, bytes)}
        seeds = {**dict(zip(sharers, before["of_seeds"], strict=True)), client: before["own_share"]}
        keys = dict(zip(sharers, before["of_keys"], strict=True))
        for dealer, share in seeds.items():
            if share in values:
                self.of_seeds[round_, dealer][client] = share
                if keys.get(dealer) in values:
                    raise Violation(f"client {client} opened both shares of client {dealer}")
            if keys.get(dealer) in values:
                self.of_keys[round_, dealer][client] = keys[dealer]
            named = reply.get(f"{OPENED_SELF}{dealer}"), reply.get(f"{OPENED_KEY}{dealer}")
            if named[0] not in (None, share) or named[1] not in (None, keys.get(dealer)):
                raise Violation(f"client {client} opened under the name of client {dealer} what is another's")
        if strange := values - {*seeds.values(), *keys.values()}:
            raise Violation(f"client {client} opened {len(strange)} values that are nobody's shares")

    def _nothing_own(self, client: int, values: Iterable[Any], what: str) -> None:
        shown = {value for value in values if isinstance(value, bytes)}
        for (_, owner), secrets in self.secrets.items():
            for name, secret in secrets.items():
                if secret in shown and (owner == client or "replies" in what):
                    raise Violation(f"client {client} {what} {name} of client {owner}")


def _restored(shares: Mapping[int, bytes]) -> bytes | None:
    """From all of them: the secret, if they are as many as it was shared for, or more."""
    try:
        return Reconstructor(len(shares)).combine(shares)
    except ProtocolError:
        return None
