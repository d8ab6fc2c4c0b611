"""What a round brings in: every client's update by itself or, under secure aggregation, their sum alone.

Both ways end in the same: replies that a strategy can average, who took part, and who did not and why. Under secure
aggregation there is one such reply, the mean of all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedsim import plugins, protocol
from fedsim.errors import ProtocolError
from fedsim.experiment import Component
from fedsim.grids.watched import client_at, client_of
from fedsim.runs import Dropout
from fedsim.secagg.base import RECORD, RoundClosed, Terms, Total, Unmasking, binding
from fedsim.server.edge import Admitted, Spent, admit, told

OnTotal = Callable[[int, Total], None]
"""Gets the round and what a secure aggregation has told the server in it."""

PAUSE = 0.05
"""Seconds between two looks for replies that have not come yet."""


@dataclass(frozen=True)
class Broadcast:
    """What the clients are sent in a round: parameters, and the shapes of the statistics that come back."""

    parameters: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Collected:
    """The outcome of a round before anything is averaged.

    replies: what a strategy averages: one for each client, or one mean of all. clients: whose updates are in them.
    closed: why a secure aggregation gave nothing. secure: JSON data about it for the line of the round.
    """

    replies: list[Admitted]
    clients: tuple[int, ...]
    dropouts: list[Dropout]
    train_loss: float | None
    spent: Mapping[int, Spent] = field(default_factory=dict)
    closed: str | None = None
    secure: Mapping[str, Any] | None = None


def collect(grid: Grid, messages: Sequence[Message], sent: Broadcast) -> Collected:
    """Send the train requests, and take every client's update by itself."""
    replies = grid.send_and_receive(messages)
    admitted, dropouts = admit(replies, sent.parameters, sent.shapes, messages)
    heard = {reply.client for reply in admitted} | {dropout.client for dropout in dropouts}
    dropouts += _silent([client_at(message.metadata.dst_node_id) for message in messages], heard)
    return Collected(
        admitted,
        tuple(reply.client for reply in admitted),
        sorted(dropouts, key=lambda one: one.client),
        _mean_loss([(reply.loss, reply.examples) for reply in admitted]),
        {reply.client: reply.spent for reply in admitted if reply.spent is not None},
    )


class SecureCollector:
    """Rounds of secure aggregation: the server's half of a mode, over a grid's messages."""

    def __init__(self, mode: Component, terms: Terms, least: int = 1, on_total: OnTotal | None = None) -> None:
        """least: with fewer vectors than the experiment requires (`server.min_clients`) a sum is not even opened."""
        self._mode, self._terms, self._least, self._on_total = mode, terms, least, on_total
        self._half = plugins.load("unmaskings", mode.name)

    def collect(self, number: int, grid: Grid, messages: Sequence[Message], sent: Broadcast) -> Collected:
        """Run a round with the clients that the train requests are for. What is summed is summed as it arrives."""
        requests = {client_at(message.metadata.dst_node_id): message for message in messages}
        nodes = {client: request.metadata.dst_node_id for client, request in requests.items()}
        left: dict[int, str] = {}
        numbers: dict[int, tuple[float | None, Spent | None]] = {}
        taken: list[int] = []

        def ask(stage: str, queries: Mapping[int, ConfigRecord]) -> Iterator[tuple[int, ConfigRecord]]:
            asked = [_query(number, stage, nodes[client], query) for client, query in sorted(queries.items())]
            for reply in arriving(grid, asked):
                client = client_of(reply)
                record = None if reply.has_error() else reply.content.get(RECORD)
                if isinstance(record, ConfigRecord):
                    yield client, record
                else:
                    left.setdefault(client, f"{stage}: {_reason(reply)}")

        half: Unmasking = self._half(
            self._mode.settings, self._terms, number, tuple(sorted(requests)), binding(sent.parameters, sent.statistics)
        )
        try:
            for message in arriving(grid, _along(half.prepare(ask), requests)):
                client = client_of(message)
                try:
                    numbers[client] = self._take(half, client, message)
                    taken.append(client)
                except ProtocolError as problem:
                    left.setdefault(client, str(problem))
            if len(taken) < self._least:
                raise RoundClosed(f"{len(taken)} vectors came, and server.min_clients = {self._least} are required")
            total = half.open(ask)
        except RoundClosed as reason:
            return self._closed(str(reason), sorted(requests), taken, left)
        if self._on_total is not None:
            self._on_total(number, total)
        spent = {client: numbers[client][1] for client in total.clients}
        return Collected(
            [_as_reply(total)],
            total.clients,
            _dropouts(sorted(requests), total.clients, left),
            _mean_loss([(numbers[client][0], 1) for client in total.clients]),
            {client: one for client, one in spent.items() if one is not None},
            secure=self._facts(total, left),
        )

    def _take(self, half: Unmasking, client: int, reply: Message) -> tuple[float | None, Spent | None]:
        """Add one client's vector to the sum; what it tells besides. Raises ProtocolError for what cannot be used."""
        if reply.has_error():
            raise ProtocolError(_reason(reply))
        numbers = told(reply, self._mode.settings.metrics)
        half.take(client, reply.content)
        return numbers

    def _closed(self, reason: str, asked: list[int], taken: list[int], left: Mapping[int, str]) -> Collected:
        return Collected(
            [],
            tuple(sorted(taken)),
            _dropouts(sorted(left), taken, left),
            None,
            closed=f"{self._mode.name}: {reason}",
            secure={
                "mode": self._mode.name,
                "sent": len(taken),
                **_unopened(taken, left),
                "cut_off": sorted(set(asked) - set(taken) - set(left)),
            },
        )

    def _facts(self, total: Total, left: Mapping[int, str]) -> dict[str, Any]:
        return {
            "mode": self._mode.name,
            "survivors": len(total.clients),
            "examples": total.examples,
            "clipped": total.clipped,
            "error_bound": total.error,
            **_unopened(total.clients, left),
        }


def arriving(grid: Grid, messages: Iterable[Message]) -> Iterator[Message]:
    """The replies to messages, each as soon as the grid has it."""
    waiting = set(grid.push_messages(messages))
    while waiting:
        before = len(waiting)
        for reply in grid.pull_messages(sorted(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            yield reply
        if waiting and len(waiting) == before:
            time.sleep(PAUSE)


def _along(along: Mapping[int, ConfigRecord | None], requests: Mapping[int, Message]) -> Iterator[Message]:
    """The train requests to the clients that are still there, with what goes along."""
    for client, record in sorted(along.items()):
        message = requests[client]
        # One content object may be in the requests to all clients.
        message.content = RecordDict({**message.content, **({} if record is None else {RECORD: record})})
        yield message


def _query(number: int, stage: str, node: int, query: ConfigRecord) -> Message:
    return Message(RecordDict({RECORD: query}), dst_node_id=node, message_type=f"query.{stage}", group_id=str(number))


def _reason(reply: Message) -> str:
    if reply.has_error():
        return reply.error.reason or "the client failed and gave no reason"
    return f"the record '{RECORD}' is missing"


def _silent(asked: Iterable[int], heard: set[int]) -> list[Dropout]:
    """Clients that were asked and from whom nothing came."""
    return [Dropout(client, "no reply") for client in asked if client not in heard]


def _dropouts(asked: Iterable[int], there: Iterable[int], left: Mapping[int, str]) -> list[Dropout]:
    gone = set(asked) - set(there)
    return [Dropout(client, left.get(client, "what it sent could not be used")) for client in sorted(gone)]


def _unopened(there: Iterable[int], left: Mapping[int, str]) -> dict[str, Any]:
    """Clients that sent their vector, but did not help, or refused, to open the sum."""
    found = {str(client): left[client] for client in sorted(there) if client in left}
    return {"unopened": found} if found else {}


def _mean_loss(parts: Iterable[tuple[float | None, int]]) -> float | None:
    heard = [(loss, weight) for loss, weight in parts if loss is not None]
    total = sum(weight for _, weight in heard)
    return sum(loss * weight for loss, weight in heard) / total if total else None


def _as_reply(total: Total) -> Admitted:
    """The mean of all as one reply, so that a strategy which averages has it as it is."""
    return Admitted(
        total.clients[0],
        Message(RecordDict({protocol.METRICS: MetricRecord()}), dst_node_id=0, message_type="train"),
        {name: value.to(torch.float32) for name, value in total.update.items()},
        {name: value.to(torch.float32) for name, value in total.statistics.items()},
        total.examples,
        total.steps,
        None,
    )
