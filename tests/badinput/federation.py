"""A small federation whose second round can be played again and again, with messages changed on the way. No test here.

The first round is played once, honestly. Then the server's state is put back before every case, and what clients reply
to the second round's requests is taken from a recording, so that a case costs no training unless it is about clients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from torch import Tensor

from fedsim.clients.app import client_app
from fedsim.experiment import Experiment
from fedsim.experiment_file import from_table
from fedsim.grids.flower_internals import SERVER_NODE
from fedsim.grids.inline import InlineGrid
from fedsim.grids.watched import client_at
from fedsim.runs import RoundRecord
from fedsim.server.app import Rounds

CLIENTS, ROUND = 5, 2

Arrive = Callable[[int, Message], "list[Message]"]
"""Gets a client and its honest reply, and returns what reaches the server in its place."""


@dataclass(frozen=True)
class Ended:
    """What came of the second round: its record, and the model after it."""

    record: RoundRecord
    model: dict[str, Tensor]

    def same_model(self, other: Ended) -> bool:
        """To the bit."""
        return self.model.keys() == other.model.keys() and all(
            torch.equal(value, other.model[name]) for name, value in self.model.items()
        )


def experiment(mode: str) -> Experiment:
    """Five clients, a network with BatchNorm, two rounds. mode: of secure aggregation, or `off`."""
    return from_table(
        {
            "seed": 5,
            "rounds": ROUND,
            "data": {"name": "digits"},
            "model": {"name": "tiny_batchnorm"},
            "clients": {"count": CLIENTS, "algorithm": "fedsgd", "batch_size": 2, "batchnorm": "share_running"},
            "server": {"learning_rate": 0.1, "evaluate_every": 0, "secure_aggregation": mode},
        }
    )


class Federation:
    """requests, replies: of an honest run, by (round, client); of a secure aggregation, by (round, client, type)."""

    def __init__(self, mode: str) -> None:
        self.mode, self.experiment = mode, experiment(mode)
        self.app = client_app(self.experiment)
        self.requests: dict[tuple[int, int, str], RecordDict] = {}
        self.replies: dict[tuple[int, int, str], RecordDict] = {}
        self._rounds = Rounds(self.experiment)
        states: list[dict[str, Any]] = []
        grid = InlineGrid(self.app, CLIENTS)
        grid.watch(self._note)
        self._rounds.run(grid, lambda record: None, on_end=lambda rounds: states.append(rounds.state()))
        self._before = states[1]
        self.start = Ended(RoundRecord(1), _model(self._rounds, self._before))

    def play(self, grid: InlineGrid) -> Ended:
        """The second round over this grid. Raises whatever the server raises."""
        self._rounds.restore(self._before)
        records: list[RoundRecord] = []
        self._rounds.run(grid, records.append)
        return Ended(records[-1], _model(self._rounds, self._rounds.state()))

    def played(self, arrive: Arrive) -> Ended:
        """The second round with recorded replies, changed on their way."""
        return self.play(Recorded(self, arrive))

    @functools.lru_cache(64)  # noqa: B019  # there are few federations, and they live as long as the process
    def expected(self, clients: tuple[int, ...]) -> Ended:
        """The second round with honest replies of these clients alone."""
        return self.played(lambda client, reply: [reply] if client in clients else [])

    def context(self, client: int) -> Context:
        """A client's, as of now."""
        return InlineGrid(self.app, CLIENTS).contexts[client + 1]

    def _note(self, message: Message) -> None:
        source, target = message.metadata.src_node_id, message.metadata.dst_node_id
        held = self.requests if source == SERVER_NODE else self.replies
        client = client_at(target if source == SERVER_NODE else source)
        held[int(message.metadata.group_id), client, message.metadata.message_type] = copied(message.content)


class Recorded(InlineGrid):
    """A grid without clients: every request is answered from the recording."""

    def __init__(self, federation: Federation, arrive: Arrive) -> None:
        super().__init__(federation.app, CLIENTS)
        self._federation, self._arrive = federation, arrive

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        out = []
        for message in messages:
            self._name(message)
            client = client_at(message.metadata.dst_node_id)
            held = self._federation.replies[ROUND, client, message.metadata.message_type]
            out += self._arrive(client, Message(copied(held), reply_to=message))
        return out


class Tampering(InlineGrid):
    """A grid on which messages are changed between the server and the real clients.

    outgoing: gets a client and a request, and may change it. incoming: gets a client and its reply, and may.
    """

    def __init__(
        self,
        federation: Federation,
        outgoing: Callable[[int, Message], None] = lambda client, message: None,
        incoming: Callable[[int, Message], None] = lambda client, message: None,
    ) -> None:
        super().__init__(federation.app, CLIENTS)
        self._on_reply = incoming
        self.let_alter(lambda message: outgoing(client_at(message.metadata.dst_node_id), message))

    def _incoming(self, reply: Message) -> Message:
        self._on_reply(client_at(reply.metadata.src_node_id), reply)
        return super()._incoming(reply)


def copied(content: RecordDict) -> RecordDict:
    """New records, over the same arrays."""
    out = RecordDict()
    for key, record in content.items():
        out[key] = record.copy()
    return out


def _model(rounds: Rounds, state: dict[str, Any]) -> dict[str, Tensor]:
    return {**state["parameters"], **{f"running/{name}": value for name, value in state["running"].items()}}
