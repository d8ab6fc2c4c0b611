"""Rounds of secure aggregation in memory: a server's half, clients' halves, hooks between them. No test is in here.

from secagg.driving import Round, clients_with
total = Round(SecAggPlus(), clients_with(5), drops={"train": {3}}).run()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from fedsim.clients.masking import PairwiseMasking
from fedsim.clients.plain_sum import PlainMasking
from fedsim.errors import ProtocolError
from fedsim.secagg.base import SEALED, Contribution, Layout, RoundClosed, Terms, Total
from fedsim.secagg.ideal import Ideal
from fedsim.secagg.vectors import VECTOR
from fedsim.server.plain_sum import PlainUnmasking
from fedsim.server.unmasking import PairwiseUnmasking

LAYOUT = Layout({"weight": (5, 7), "bias": (3,)}, {"norm/mean": (4,)})
MODEL = bytes(range(32))
"""What the clients were sent, as `binding` has it."""

TRAIN = "train"
"""The stage, for the hooks, of the train request and its reply."""

Hook = Callable[[str, int, ConfigRecord], ConfigRecord | None]


def contribution(seed: int, layout: Layout = LAYOUT) -> Contribution:
    """One client's, drawn at random."""
    rng = torch.Generator().manual_seed(seed)
    parts = (
        {name: torch.randn(shape, generator=rng) for name, shape in part.items()}
        for part in (layout.update, layout.statistics)
    )
    return Contribution(*parts, examples=1 + seed % 7, steps=1 + seed % 3)


def clients_with(count: int, start: int = 0) -> dict[int, Contribution]:
    """{client: contribution}; ids are not in a row, as where some clients are drawn."""
    return {start + 3 * place: contribution(1000 + start + place) for place in range(count)}


def terms_for(contributions: Mapping[int, Contribution], layout: Layout = LAYOUT, run: int = 77) -> Terms:
    return Terms(run, len(contributions), 8, 3, layout)


def expected(settings: Any, terms: Terms, contributions: Mapping[int, Contribution], survivors: Any) -> NDArray:
    """The ring sum over the survivors, added up as Python's integers."""
    codec = settings.codec(terms)
    total = [0] * codec.size
    for client in survivors:
        total = [a + int(b) for a, b in zip(total, codec.encode(contributions[client]), strict=True)]
    return np.array([value % 2**codec.bits for value in total], codec.dtype)


def outcome(round_: Round) -> str:
    """`exact` or `closed`; anything else, and above all a wrong sum, fails the test."""
    try:
        total = round_.run()
    except RoundClosed:
        return "closed"
    assert round_.terms is not None
    right = expected(round_.settings, round_.terms, round_.contributions, total.clients)
    assert np.array_equal(total.sealed, right)
    return "exact"


def vector_of(content: RecordDict) -> NDArray:
    """The signed ring elements of a sealed update."""
    return content[SEALED][VECTOR].numpy()  # type: ignore[index,union-attr,no-any-return]


@dataclass
class Round:
    """One round. Failures of clients are kept in `failures`, and what was sent in `sent`.

    drops: by stage (`keys`, `shares`, `train`, `unmask`), the clients that do not answer it, nor anything after it.
    on_query, on_reply: see a message (the train request's is what goes along), and may return another; an ndarray hook
    for vectors is `on_sealed`. models: by client, another binding than the one that the server has. order: of arrival.
    """

    settings: Any
    contributions: Mapping[int, Contribution]
    terms: Terms | None = None
    round: int = 4
    drops: Mapping[str, set[int]] = field(default_factory=dict)
    on_query: Hook | None = None
    on_reply: Hook | None = None
    on_sealed: Callable[[int, RecordDict], RecordDict] | None = None
    models: Mapping[int, bytes] = field(default_factory=dict)
    order: Callable[[list[int]], list[int]] = sorted
    masking: type | None = None
    unmasking: type | None = None

    def __post_init__(self) -> None:
        self.terms = self.terms or terms_for(self.contributions)
        plain = type(self.settings) is Ideal
        self.masking = self.masking or (PlainMasking if plain else PairwiseMasking)
        self.unmasking = self.unmasking or (PlainUnmasking if plain else PairwiseUnmasking)
        self.memories = {client: ConfigRecord() for client in self.contributions}
        self.server = self.unmasking(self.settings, self.terms, self.round, self.contributions, MODEL)
        self.failures: dict[int, ProtocolError] = {}
        self.sent: list[tuple[str, int, ConfigRecord, ConfigRecord]] = []
        self.sealed: dict[int, RecordDict] = {}
        self._gone: set[int] = set()

    def run(self) -> Total:
        """All of it. Raises RoundClosed, and what the server's half raises otherwise."""
        self.prepare()
        return self.finish()

    def prepare(self) -> None:
        """Up to and with the training."""
        along = self.server.prepare(self.ask)
        self.train(along)

    def train(self, along: Mapping[int, ConfigRecord | None]) -> None:
        for client in self.order(list(along)):
            if self._left(TRAIN, client):
                continue
            try:
                self.sealed[client] = self.seal(client, along[client])
                self.server.take(client, self.sealed[client])
            except ProtocolError as error:
                self._fail(client, error)

    def finish(self) -> Total:
        total: Total = self.server.open(self.ask)
        return total

    def ask(self, stage: str, queries: Mapping[int, ConfigRecord]) -> Iterator[tuple[int, ConfigRecord]]:
        for client in self.order(list(queries)):
            if self._left(stage, client):
                continue
            query = _copy(self._hooked(self.on_query, stage, client, queries[client]))
            half = self.half(client)
            try:
                reply = half.answer(stage, query)
            except ProtocolError as error:
                self._fail(client, error)
                continue
            self.memories[client] = _copy(half.memory)
            reply = self._hooked(self.on_reply, stage, client, reply)
            self.sent.append((stage, client, query, reply))
            yield client, _copy(reply)

    def half(self, client: int) -> Any:
        """A client's half, as of now, made anew for a message."""
        assert self.masking is not None
        return self.masking(self.settings, self.terms, client, self.round, _copy(self.memories[client]))

    def seal(self, client: int, along: ConfigRecord | None) -> RecordDict:
        if along is not None:
            along = _copy(self._hooked(self.on_query, TRAIN, client, along))
        half = self.half(client)
        content: RecordDict = half.seal(self.contributions[client], along, self.models.get(client, MODEL))
        self.memories[client] = _copy(half.memory)
        return self.on_sealed(client, content) if self.on_sealed else content

    def _hooked(self, hook: Hook | None, stage: str, client: int, record: ConfigRecord) -> ConfigRecord:
        seen = hook(stage, client, _copy(record)) if hook else None
        return record if seen is None else seen

    def _left(self, stage: str, client: int) -> bool:
        if client in self.drops.get(stage, ()):
            self._gone.add(client)
        return client in self._gone

    def _fail(self, client: int, error: ProtocolError) -> None:
        self._gone.add(client)
        self.failures[client] = error


def _copy(record: ConfigRecord) -> ConfigRecord:
    return ConfigRecord({key: list(value) if isinstance(value, list) else value for key, value in record.items()})
