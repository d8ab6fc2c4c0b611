"""What a malicious server knows in a round, and what an honest one would ask in its place. No test is in here."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ConfigRecord
from secagg.parties import Party

from fedsim.secagg import messages
from fedsim.secagg.graph import neighbours
from fedsim.secagg.keys import KeyPair, new_pair
from fedsim.secagg.pairing import degree_of
from fedsim.secagg.parameters import Parameters


@dataclass
class Server:
    """One round. own: keys of the server's, for every client a pair of pairs. sent: every query so far, by stage.

    split: (victim, salt) of those that some clients are told have dropped out, and others that they survived.
    """

    number: int
    ids: tuple[int, ...]
    agreed: Parameters
    parties: Mapping[int, Party]
    old_shares: Mapping[int, messages.SharesReply]
    sent: list[tuple[str, ConfigRecord]]
    split: tuple[tuple[int, int], ...] = ()
    keys: dict[int, messages.KeysReply] = field(default_factory=dict)
    graph: dict[int, tuple[int, ...]] = field(default_factory=dict)
    shares: dict[int, messages.SharesReply] = field(default_factory=dict)
    vectors: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.own: dict[int, tuple[KeyPair, KeyPair]] = {one: (new_pair(), new_pair()) for one in self.ids}

    def join(self) -> None:
        """Draw the graph; the server plays for those that gave no keys."""
        for one, (cipher, mask) in self.own.items():
            self.keys.setdefault(one, messages.KeysReply(self.number, cipher.public, mask.public))
        self.graph = neighbours(self.ids, degree_of(self.agreed.neighbours, len(self.ids)))

    def honest(self, stage: str, client: int) -> ConfigRecord:
        """What an honest server would ask, but for the splits."""
        near = self.graph.get(client, ())
        if stage == "keys":
            return messages.KeysQuery(self.number, self.ids).record()
        if stage == "shares":
            cipher, mask = zip(*((self.keys[one].cipher, self.keys[one].mask) for one in near), strict=True)
            return messages.SharesQuery(
                self.number, self.ids, near, cipher, mask, self.agreed.threshold, len(near)
            ).record()
        if stage == "train":
            given = {one: self.shares[one].encrypted for one in near if one in self.shares}
            mine = {one: encrypted[client] for one, encrypted in given.items() if client in encrypted}
            return messages.Along(self.number, max(len(self.shares), len(mine) + 1), mine).record()
        memory = self.parties[client].memory
        sharers = [int(one) for one in memory.get("sharers", ())]  # as the client has it
        dead = {one for one in sharers if one not in self.vectors or self._split(one, client)}
        alive = [one for one in (*sharers, client) if one not in dead]
        # As many as can be, where that is plausible: who is called dead here has not survived elsewhere.
        total = min(max(len(self.vectors), len(alive)), memory.get("total", len(self.ids)) - len(dead))
        return messages.UnmaskQuery(self.number, tuple(alive), tuple(sorted(dead)), total).record()

    def _split(self, victim: int, client: int) -> bool:
        return any(one == victim and random.Random(f"{salt} {client}").random() < 0.5 for one, salt in self.split)
