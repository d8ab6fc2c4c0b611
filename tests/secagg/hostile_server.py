"""A malicious server and honest clients: it asks what it likes, as a `Script` says, and a watch keeps what they give.

Counted is what clients give away. Two things are not held against them, as no rule of theirs could stop them: that it
reads shares for which it gave public keys of its own, for nobody vouches for keys, and that it chooses the graph where
that is not full.
"""

from __future__ import annotations

import random
from collections import defaultdict
from math import floor

from flwr.app import ConfigRecord
from secagg.driving import MODEL
from secagg.hostile_state import Server
from secagg.lies import LIES
from secagg.parties import Party, repeatable, terms_of
from secagg.sequences import STAGES, Fault, Script, Tally, Violation, drawn_clients, drawn_faults, possible
from secagg.tampering import copied
from secagg.watching import Watch

from fedsim.secagg import messages
from fedsim.secagg.base import ROUND
from fedsim.secagg.plus import SecAggPlus

FIRST = 4
"""The number of the first round."""

OUT_OF_TURN = {
    "not asked": STAGES,
    "begun anew": STAGES[1:],
    "next round begun": STAGES,
    "earlier stage": STAGES[1:],
    "later stage": STAGES[1:3],
    "repeated": STAGES,
    "repeated otherwise": ("shares", "unmask"),
    "message of another": STAGES,
    "old message": STAGES[1:],
    "no such stage": STAGES,
}
"""What may be asked besides the message that is due, and at which stages."""

SPLIT = "split"
"""The fault that some are told that a client survived, and some that it did not."""

KINDS = (*((kind, stages) for kind, (stages, _) in LIES.items()), *OUT_OF_TURN.items(), (SPLIT, ("unmask",)))
"""Every kind of fault, and the stages at which it can be."""


def drawn(number: int) -> Script:
    """Sequence `number`. In most the graph is full, and the threshold one that is meant for malicious servers."""
    rng = random.Random(f"hostile {number}")
    clients = drawn_clients(rng)
    settings = SecAggPlus(corrupt=rng.choice((0.0, 0.1, 0.2)), dropout=0.1, min_survivors=2)
    if rng.random() < 0.25:
        server = rng.choice(("malicious", "honest_but_curious"))
        neighbours, threshold = rng.choice(possible(clients, server))
        settings = SecAggPlus(
            corrupt=0.0,
            dropout=0.0,
            neighbours=neighbours,
            threshold=threshold,
            server=server,  # type: ignore[arg-type]
            min_survivors=2,
        )
    rounds = rng.choice((1, 1, 2))
    faults = drawn_faults(rng, KINDS, rounds, clients, 15)
    for _ in range(rng.randrange(3)):
        victim, salt = rng.randrange(clients), rng.randrange(2**16)
        faults += (Fault(SPLIT, rounds - 1, "unmask", victim, salt),)
        if rng.random() < 0.3:  # what would make it easy
            faults += (Fault("threshold other", rounds - 1, "shares", victim, salt),)
    return Script(number, clients, settings, rounds, faults)


def play(script: Script, tally: Tally | None = None) -> Watch:
    """What a server got in a sequence. Raises Violation for what clients should not have done."""
    with repeatable(script.number):
        return Hostile(script, tally or Tally()).play()


class Hostile:
    """One sequence as it is played. The server asks every client at every stage, and does not stop at refusals."""

    def __init__(self, script: Script, tally: Tally) -> None:
        self.script, self.tally, self.ids = script, tally, script.ids
        self.agreed = script.settings.parameters(script.clients)
        terms = terms_of(script.clients)
        self.parties = {one: Party(script.settings, terms, one, tally.refused) for one in self.ids}
        self.watch = Watch()
        self.rng = random.Random(f"order {script.number}")
        self.corrupt = self.rng.sample(self.ids, floor(script.settings.corrupt * script.clients))
        self.faults: dict[tuple[int, str, int], list[Fault]] = defaultdict(list)
        for fault in script.faults:
            self.faults[FIRST + fault.round, fault.stage, self.ids[fault.place % script.clients]].append(fault)
        self.server = Server(FIRST, self.ids, self.agreed, self.parties, {}, [])

    def play(self) -> Watch:
        for number in range(FIRST, FIRST + self.script.rounds):
            split = tuple(
                (client, fault.salt)
                for (round_, _, client), faults in self.faults.items()
                for fault in faults
                if fault.kind == SPLIT and round_ == number
            )
            self.server = Server(
                number, self.ids, self.agreed, self.parties, self.server.shares, self.server.sent, split
            )
            for stage in STAGES:
                if stage == "shares":
                    self.server.join()
                for client in self.rng.sample(self.ids, len(self.ids)):
                    self._visit(stage, client)
            for client in self.ids:  # who is done must stay so
                self._send("unmask", client, self.server.honest("unmask", client))
                self._send("keys", client, self.server.honest("keys", client))
            self._judge()
        return self.watch

    @property
    def safe(self) -> bool:
        """Whether the threshold is one that a malicious server cannot get around."""
        return self.script.settings.server == "malicious" and self.agreed.neighbours >= self.script.clients - 1

    def _judge(self) -> None:
        """Of no honest client both secrets, nor shares of both that would be enough."""
        for read in (self.watch.split(self.agreed.threshold), self.watch.read()):
            if self.safe and (honest := [one for one in read if one[1] not in self.corrupt]):
                raise Violation(f"a malicious server has shares enough of both secrets of (round, client) {honest}")

    # --- asking -----------------------------------------------------------------------------------------------------

    def _visit(self, stage: str, client: int) -> None:
        """One client at one stage: lies in what is due, and what is asked before and after it."""
        due: ConfigRecord | None = self.server.honest(stage, client)
        model = MODEL
        faults = self.faults[self.server.number, stage, client]
        for fault in sorted(faults, key=lambda one: one.kind in ("tampered", "entries of another message")):
            self.tally.faults[fault.kind] += 1
            if fault.kind in LIES and due is not None:
                due = LIES[fault.kind][1](self.server, copied(due), client, random.Random(fault.salt))
            if fault.kind == "other model":
                model = bytes(32)
        kinds = [fault.kind for fault in faults]
        for fault in faults:
            self._before(fault, stage, client)
        if "not asked" not in kinds:
            self._send(stage, client, due, model)
        for fault in faults:
            self._after(fault, stage, client, due)

    def _before(self, fault: Fault, stage: str, client: int) -> None:
        rng, place = random.Random(fault.salt), STAGES.index(stage)
        if fault.kind == "next round begun":
            self._send("keys", client, messages.KeysQuery(self.server.number + 1, self.ids).record())
        elif fault.kind in ("earlier stage", "later stage"):
            other = rng.choice(STAGES[:place] if fault.kind == "earlier stage" else STAGES[place + 1 :])
            self._send(other, client, self.server.honest(other, client))

    def _after(self, fault: Fault, stage: str, client: int, due: ConfigRecord | None) -> None:
        rng, server = random.Random(fault.salt), self.server
        if fault.kind == "repeated":
            self._send(stage, client, due)
        elif fault.kind == "begun anew":
            self._send("keys", client, server.honest("keys", client))
        elif fault.kind == "repeated otherwise":
            other = server.honest(stage, client)
            if stage == "unmask":
                dead = rng.sample(server.ids, len(server.ids) // 2)
                other["survivors"] = [one for one in server.ids if one not in dead or one == client]
                other["dropped"] = [one for one in dead if one != client]
                other["total"] = len(other["survivors"])  # type: ignore[arg-type]
            self._send(stage, client, other)
        elif fault.kind == "message of another":
            self._send(stage, client, server.honest(stage, rng.choice(self.ids)))
        elif fault.kind == "old message" and server.sent:
            old, record = rng.choice(server.sent)
            self._send(old, client, record)
        elif fault.kind == "no such stage":
            self._send(rng.choice(("decrypt", "update", "", "Keys")), client, due or ConfigRecord({ROUND: FIRST}))

    def _send(self, stage: str, client: int, record: ConfigRecord | None, model: bytes = MODEL) -> None:
        """Ask, and keep what comes back."""
        party, server = self.parties[client], self.server
        if record is not None:
            server.sent.append((stage, record))
        if stage == "train":
            self._train(client, record, model)
            return
        assert record is not None
        before = party.memory
        reply = party.answer(stage, record)
        if reply is None:
            return
        self.tally.outcomes[f"'{stage}' answered"] += 1
        self.watch.answered(stage, round_ := int(reply[ROUND]), client, reply, before, party.memory)  # type: ignore[arg-type]
        if stage == "keys" and round_ == server.number:
            server.keys.setdefault(client, messages.KeysReply.read(reply))
        elif stage == "shares" and round_ == server.number:
            server.shares[client] = messages.SharesReply.read(reply)

    def _train(self, client: int, record: ConfigRecord | None, model: bytes) -> None:
        party, said = self.parties[client], None if record is None else record.get(ROUND)
        round_ = said if type(said) is int else self.server.number
        if party.seal(round_, record, model) is None:
            return
        self.tally.outcomes["'train' answered"] += 1
        self.watch.sealed(round_, client, party.memory)
        if client in self.corrupt:
            self.watch.corrupt(round_, client, party.memory)
        self.server.vectors.add(client)
