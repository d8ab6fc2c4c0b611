"""An honest server, honest clients, and a network between them that does what a `Script` says. No test is in here.

What a network cannot be caught at is left out: it does not change the numbers of a masked vector (see
`test_a_vector_whose_numbers_are_changed_on_the_way`).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from flwr.app import ConfigRecord, RecordDict
from secagg.driving import MODEL
from secagg.parties import Party, reason, repeatable, terms_of
from secagg.sequences import STAGES, Fault, Script, Tally, Violation, drawn_clients, drawn_faults, possible
from secagg.tampering import STRANGE, copied, misshapen, spoiled
from secagg.watching import judge

from fedsim.errors import ProtocolError
from fedsim.secagg.base import RoundClosed, Total
from fedsim.secagg.plus import SecAggPlus
from fedsim.server.unmasking import PairwiseUnmasking

FIRST = 4
"""The number of the first round."""

KINDS = (
    *((kind, STAGES) for kind in ("client leaves", "query lost", "query late", "query tampered", "query doubled")),
    *((kind, STAGES) for kind in ("query replayed", "queries swapped", "memory lost", "reply lost", "reply late")),
    *((kind, STAGES) for kind in ("reply tampered", "reply doubled", "replies swapped", "reply replayed")),
    *(("query tampered", STAGES),) * 2,
    *(("reply tampered", STAGES),) * 2,
    ("two replies", STAGES),
    ("reply of a stranger", STAGES),
    ("shares swapped", ("shares", "train", "unmask")),
    ("other model", ("train",)),
)
"""Every kind of fault, and the stages at which it can be."""


def drawn(number: int) -> Script:
    """Sequence `number`. In some of them up to half of the clients leave at one stage, besides."""
    rng = random.Random(f"network {number}")
    clients, server = drawn_clients(rng), rng.choice(("malicious", "honest_but_curious"))
    full = [pair for pair in possible(clients, server) if pair[0] == clients - 1]
    neighbours, threshold = rng.choice(full if rng.random() < 0.5 else possible(clients, server))
    settings = SecAggPlus(
        bits=rng.choice((32, 64)),  # type: ignore[arg-type]
        corrupt=0.0,
        dropout=0.0,
        neighbours=neighbours,
        threshold=threshold,
        server=server,  # type: ignore[arg-type]
        min_survivors=rng.choice((2, 3)),
    )
    rounds = rng.choice((1, 1, 1, 2))
    faults = drawn_faults(rng, KINDS, rounds, clients, 9)
    if rng.random() < 0.25:
        stage, leaving = rng.choice(STAGES), rng.sample(range(clients), rng.randint(1, (clients + 1) // 2))
        faults += tuple(Fault("client leaves", rounds - 1, stage, place, 0) for place in leaving)
    return Script(number, clients, settings, rounds, faults)


def play(script: Script, tally: Tally | None = None, unmasking: Any = PairwiseUnmasking) -> list[str]:
    """How each round of a sequence ended: `exact` or `closed`. Raises Violation for anything else.

    unmasking: another server's half, to see that it would be found out.
    """
    with repeatable(script.number):
        return Network(script, tally or Tally(), unmasking).play()


class Network:
    """One sequence as it is played."""

    def __init__(self, script: Script, tally: Tally, unmasking: Any) -> None:
        self.script, self.tally, self.unmasking = script, tally, unmasking
        self.ids, self.settings, self.terms = script.ids, script.settings, terms_of(script.clients)
        self.parties = {one: Party(self.settings, self.terms, one, tally.refused) for one in self.ids}
        self.faults: dict[tuple[int, str, int], list[Fault]] = defaultdict(list)
        for fault in script.faults:
            self.faults[fault.round, fault.stage, self.ids[fault.place % script.clients]].append(fault)
        self.rng = random.Random(f"order {script.number}")
        self.round = 0
        self.gone: set[int] = set()
        self.queries: list[tuple[str, ConfigRecord]] = []
        self.replies: list[tuple[int, ConfigRecord]] = []
        self.vectors: list[tuple[int, RecordDict]] = []
        self.sealed: set[tuple[int, int]] = set()
        self.late_queries: list[tuple[str, int, ConfigRecord]] = []
        self.late_replies: list[tuple[int, ConfigRecord]] = []
        self.late_vectors: list[tuple[int, RecordDict]] = []

    def play(self) -> list[str]:
        found = []
        for number in range(self.script.rounds):
            self.round = number
            self.gone.clear()
            found.append(self._one())
        return found

    def _one(self) -> str:
        server = self.unmasking(self.settings, self.terms, FIRST + self.round, self.ids, MODEL)
        total: Total | None = None
        try:
            along = server.prepare(self._ask)
            self._train(server, along)
            total = server.open(self._ask)
        except RoundClosed as error:
            self.tally.refused[f"server, round closed: {reason(error)}"] += 1
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"the server's half ends with {type(error).__name__}: {error}") from error
        self._late(server)  # must be turned down, and leave a sum alone that is open already
        if total is not None:
            judge(total, self.script, {one for round_, one in self.sealed if round_ == FIRST + self.round})
        how = "closed" if total is None else "exact"
        self.tally.outcomes[how] += 1
        return how

    # --- queries and their replies ----------------------------------------------------------------------------------

    def _ask(self, stage: str, queries: Mapping[int, ConfigRecord]) -> Iterator[tuple[int, ConfigRecord]]:
        yield from self._overdue()
        sent = self._addressed(stage, queries)
        for client in self._order(sent, stage):
            for reply in self._exchange(stage, client, sent[client]):
                yield reply[0], copied(reply[1])

    def _overdue(self) -> Iterator[tuple[int, ConfigRecord]]:
        """What should have come at an earlier stage."""
        waiting, self.late_queries = self.late_queries, []
        for stage, client, query in waiting:
            yield from self._elsewhere(stage, client, query)
        replies, self.late_replies = self.late_replies, []
        yield from replies

    def _elsewhere(self, stage: str, client: int, query: ConfigRecord) -> Iterator[tuple[int, ConfigRecord]]:
        """The reply to a message that comes at a time of its own. A vector is kept, and brought too late."""
        if stage != "train":
            if (reply := self.parties[client].answer(stage, query)) is not None:
                yield client, reply
        elif (content := self._sealed(client, query)) is not None:
            self.late_vectors.append((client, content))

    def _sealed(self, client: int, query: ConfigRecord | None, model: bytes = MODEL) -> RecordDict | None:
        content = self.parties[client].seal(FIRST + self.round, query, model)
        if content is not None:
            self.sealed.add((FIRST + self.round, client))
        return content

    def _addressed(self, stage: str, queries: Mapping[int, Any]) -> dict[int, Any]:
        """The queries, some with another recipient."""
        sent = dict(queries)
        for client in queries:
            for fault in self._at(stage, client, "queries swapped"):
                other = random.Random(fault.salt).choice(sorted(queries))
                sent[client], sent[other] = sent[other], sent[client]
        for query in sent.values():
            if query is not None:
                self.queries.append((stage, query))
        return sent

    def _order(self, sent: Mapping[int, Any], stage: str) -> list[int]:
        order = self.rng.sample(sorted(sent), len(sent))
        if order != sorted(order):
            self.tally.faults[f"{stage}: reordered"] += 1
        return order

    def _exchange(self, stage: str, client: int, query: ConfigRecord) -> Iterator[tuple[int, ConfigRecord]]:
        """The replies that come of one query, with those who are said to have sent them."""
        party = self.parties[client]
        went = self._down(stage, client, query)
        if went is None:
            return
        for old, record in went[:-1]:
            yield from self._elsewhere(old, client, record)
        reply = party.answer(stage, went[-1][1])
        if reply is None:
            return
        if self._at(stage, client, "query doubled"):
            assert party.answer(stage, went[-1][1]) is None  # or Party has raised Violation
        self.replies.append((client, reply))
        yield from self._up(stage, client, reply)

    def _down(self, stage: str, client: int, query: ConfigRecord) -> list[tuple[str, ConfigRecord]] | None:
        """What reaches a client of a query, after what else; None where nothing does."""
        if self._at(stage, client, "client leaves"):
            self.gone.add(client)
        if client in self.gone or self._at(stage, client, "query lost"):
            return None
        if self._at(stage, client, "memory lost"):
            self.parties[client].forget()
            self.parties[client].answered.clear()  # it can no longer know
        if self._at(stage, client, "query late"):
            self.late_queries.append((stage, client, query))
            return None
        before = []
        for fault in self._at(stage, client, "query replayed"):
            before.append(random.Random(fault.salt).choice(self.queries))
        for fault in self._at(stage, client, "shares swapped"):
            query = self._swapped(query, fault)
        for fault in self._at(stage, client, "query tampered"):
            query, told = spoiled(query, random.Random(fault.salt), self.ids)
            self.tally.faults[f"   (query tampered: {told})"] += 1
        return [*before, (stage, query)]

    def _up(self, stage: str, client: int, reply: ConfigRecord) -> Iterator[tuple[int, ConfigRecord]]:
        """What reaches the server of a reply."""
        if self._at(stage, client, "reply lost"):
            return
        if self._at(stage, client, "reply late"):
            self.late_replies.append((client, reply))
            return
        for fault in self._at(stage, client, "reply replayed"):
            yield client, random.Random(fault.salt).choice(self.replies)[1]
        for fault in self._at(stage, client, "two replies"):
            yield client, spoiled(reply, random.Random(fault.salt), self.ids)[0]
        for _ in self._at(stage, client, "reply of a stranger"):
            yield STRANGE, reply
            yield -1, reply
        for fault in self._at(stage, client, "shares swapped"):
            reply = self._swapped(reply, fault)
        for fault in self._at(stage, client, "reply tampered"):
            reply, told = spoiled(reply, random.Random(fault.salt), self.ids)
            self.tally.faults[f"   (reply tampered: {told})"] += 1
        for fault in self._at(stage, client, "replies swapped"):
            client = random.Random(fault.salt).choice(self.ids)
        yield client, reply
        if self._at(stage, client, "reply doubled"):
            yield client, reply

    def _swapped(self, record: ConfigRecord, fault: Fault) -> ConfigRecord:
        """Two clients' bytes in one message exchanged."""
        names = sorted(key for key, value in record.items() if "/" in key and isinstance(value, bytes))
        if len(names) < 2:
            return record
        out, (one, other) = copied(record), random.Random(fault.salt).sample(names, 2)
        out[one], out[other] = record[other], record[one]
        return out

    # --- vectors ----------------------------------------------------------------------------------------------------

    def _train(self, server: Any, along: Mapping[int, ConfigRecord | None]) -> None:
        for _ in self._overdue():
            pass  # replies to queries that nobody waits for any more
        sent = self._addressed("train", along)
        for client in self._order(sent, "train"):
            went = self._down("train", client, sent[client])
            if went is None:
                continue
            for old, record in went[:-1]:
                for _ in self._elsewhere(old, client, record):
                    pass
            query = went[-1][1]
            content = self._sealed(client, query, bytes(32) if self._at("train", client, "other model") else MODEL)
            if content is None:
                continue
            if self._at("train", client, "query doubled"):
                assert self._sealed(client, query) is None  # or Party has raised Violation
            self._bring(server, client, content)
            self.vectors.append((client, content))

    def _bring(self, server: Any, client: int, content: RecordDict) -> None:
        """What reaches the server of a vector."""
        if self._at("train", client, "reply lost"):
            return
        if self._at("train", client, "reply late"):
            self.late_vectors.append((client, content))
            return
        for fault in self._at("train", client, "reply replayed"):
            old = [one for one in self.vectors if one[0] == client]  # of an earlier round
            if old:
                self._take(server, client, random.Random(fault.salt).choice(old)[1])
        for fault in self._at("train", client, "two replies"):
            self._take(server, client, misshapen(content, random.Random(fault.salt))[0], refuse=True)
        if self._at("train", client, "reply of a stranger"):
            self._take(server, STRANGE, content, refuse=True)
        for fault in self._at("train", client, "reply tampered"):
            spoilt, told = misshapen(content, random.Random(fault.salt))
            self.tally.faults[f"   (reply tampered: {told})"] += 1
            self._take(server, client, spoilt, refuse=True)
            return
        for fault in self._at("train", client, "replies swapped"):
            client = random.Random(fault.salt).choice(self.ids)
        self._take(server, client, content)
        if self._at("train", client, "reply doubled"):
            self._take(server, client, content, refuse=True)

    def _take(self, server: Any, client: int, content: RecordDict, refuse: bool = False) -> None:
        try:
            server.take(client, content)
        except ProtocolError as error:
            self.tally.refused[f"server, train: {reason(error)}"] += 1
        except Exception as error:
            raise Violation(f"the server takes a vector with {type(error).__name__}: {error}") from error
        else:
            if refuse:
                raise Violation(f"the server took something of client {client} that it had to turn down")

    def _late(self, server: Any) -> None:
        for client, content in self.late_vectors:
            self._take(server, client, content, refuse=True)
        self.late_vectors.clear()

    def _at(self, stage: str, client: int, kind: str) -> list[Fault]:
        """The faults of a kind at a message; they count as having happened."""
        found = [one for one in self.faults[self.round, stage, client] if one.kind == kind]
        self.tally.faults[kind] += len(found)
        return found
