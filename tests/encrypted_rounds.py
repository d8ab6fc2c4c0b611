"""Rounds of `ckks` in memory: the two halves, with clients that leave where a test wants it. No test is in here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from flwr.app import ConfigRecord, RecordDict

from fedsim.clients.encrypting import HomomorphicMasking
from fedsim.errors import ProtocolError
from fedsim.secagg.base import Contribution, Layout, Terms, Total
from fedsim.secagg.ckks import CKKS
from fedsim.server.adding import HomomorphicUnmasking

LAYOUT = Layout({"weight": (40, 90), "bias": (7,)}, {"running_var": (5,)})
"""3624 numbers to come: two ciphertexts of 2048 slots."""

SETTINGS = CKKS(poly_modulus_degree=4096)
MODEL = bytes(32)
ROUND = 4

Change = Callable[[int, str, ConfigRecord], ConfigRecord]
"""(client, stage, record): what travels in its place."""


def terms(clients: int = 4, most_examples: int = 100) -> Terms:
    return Terms(run=11, clients=clients, most_examples=most_examples, most_steps=8, layout=LAYOUT)


def contribution(client: int, layout: Layout = LAYOUT) -> Contribution:
    """Client 2 has more examples than count."""
    rng = torch.Generator().manual_seed(client)
    return Contribution(
        {name: torch.randn(shape, generator=rng) for name, shape in layout.update.items()},
        {name: 30 * torch.rand(shape, generator=rng) for name, shape in layout.statistics.items()},
        (20, 55, 130, 100)[client % 4],
        client % 4 + 1,
    )


def plain_mean(clients: Iterable[int], name: str, part: str = "update", most_examples: int = 100) -> torch.Tensor:
    """What no encryption would give, float64."""
    what = {client: contribution(client) for client in clients}
    weights = {client: min(one.examples, most_examples) for client, one in what.items()}
    parts = [weights[client] * getattr(one, part)[name].double() for client, one in what.items()]
    return torch.stack(parts).sum(0) / sum(weights.values())


@dataclass
class Federation:
    """Clients whose memory lasts from message to message. gone: (client, stage) at which one leaves."""

    settings: CKKS = SETTINGS
    terms: Terms = field(default_factory=terms)
    gone: set[tuple[int, str]] = field(default_factory=set)
    change_query: Change = lambda client, stage, record: record
    change_reply: Change = lambda client, stage, record: record
    memories: dict[int, ConfigRecord] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    seen: list[tuple[int, str, ConfigRecord, ConfigRecord]] = field(default_factory=list)
    """Every query and its reply, in order."""
    sealed: dict[int, RecordDict] = field(default_factory=dict)
    left: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.server = HomomorphicUnmasking(self.settings, self.terms, ROUND, range(self.terms.clients), MODEL)

    def half(self, client: int) -> HomomorphicMasking:
        memory = self.memories.get(client, ConfigRecord())
        return HomomorphicMasking(self.settings, self.terms, client, ROUND, memory)

    def answer(self, client: int, stage: str, query: ConfigRecord) -> ConfigRecord:
        half = self.half(client)
        reply = half.answer(stage, query)
        self.memories[client] = half.memory
        return reply

    def ask(self, stage: str, queries: Mapping[int, ConfigRecord]) -> Iterator[tuple[int, ConfigRecord]]:
        for client, query in sorted(queries.items(), reverse=True):
            if self.leaves(client, stage):
                continue
            try:
                reply = self.answer(client, stage, self.change_query(client, stage, query))
            except ProtocolError as problem:
                self.refusals.append(str(problem))
                continue
            self.seen.append((client, stage, query, reply))
            yield client, self.change_reply(client, stage, reply)

    def leaves(self, client: int, stage: str) -> bool:
        self.left |= {client} if (client, stage) in self.gone else set()
        return client in self.left

    def seal(self, client: int, along: ConfigRecord | None) -> RecordDict:
        half = self.half(client)
        sealed = half.seal(contribution(client, self.terms.layout), along, MODEL)
        self.memories[client] = half.memory
        self.sealed[client] = sealed
        return sealed

    def train(self) -> None:
        """Everything up to the last update."""
        for client, along in self.server.prepare(self.ask).items():
            if not self.leaves(client, "train"):
                self.server.take(client, self.seal(client, along))

    def run(self) -> Total:
        self.train()
        return self.server.open(self.ask)
