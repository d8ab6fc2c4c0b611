"""A Flower Grid in this process: every client of a round, one after another, without sockets, workers or serialisation.

It runs any Message-API ServerApp and ClientApp. What it adds to the interface is `watch`: an observer sees every
message on its way, which is where the wiretap is attached.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedsim.errors import ProtocolError
from fedsim.grids.flower_internals import (
    SERVER_NODE,
    Run,
    empty_run,
    set_message_id,
    take_identity,
)

Observer = Callable[[Message], None]
Alterer = Callable[[Message], None]
CLIENT_RAISED = 1
"""The error code of a reply whose client raised an exception."""


class InlineGrid(Grid):
    """Runs `client_app` for `clients` nodes with ids 1 to n (client i is node i + 1, partition i).

    A client's context (its `state`) is kept from round to round, as Flower keeps it. A client that raises is answered
    for with an error message that holds the reason; the others go on.
    """

    def __init__(self, client_app: ClientApp, clients: int, run_id: int = 1) -> None:
        self._app = client_app
        self._observers: list[Observer] = []
        self._run = empty_run(run_id)
        self._waiting: dict[str, Message] = {}
        self._alterers: list[Alterer] = []
        self._sent = 0
        self.contexts = {
            node: Context(
                run_id=run_id,
                node_id=node,
                node_config={"partition-id": node - 1, "num-partitions": clients},
                state=RecordDict(),
                run_config={},
            )
            for node in range(1, clients + 1)
        }
        take_identity(run_id)

    def watch(self, observer: Observer) -> None:
        """Show `observer` every message from now on, in both directions."""
        self._observers.append(observer)

    def let_alter(self, alterer: Alterer) -> None:
        """Let `alterer` change messages from the server from now on, before anybody else sees them."""
        self._alterers.append(alterer)

    def set_run(self, run: Run) -> None:
        """Take over another run's description."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message from the server to a node."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Every client's node id, in order."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages for delivery. Returns the ids to pull replies by."""
        ids = []
        for message in messages:
            self._name(message)
            self._waiting[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The replies to pushed messages, one by one: a client works when its reply is asked for, so that whoever
        uses the replies as they come need not hold all of them. Each can be pulled once.
        """
        for id_ in list(message_ids):
            if id_ in self._waiting:
                yield self._deliver(self._waiting.pop(id_))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver messages and return the replies in the same order. `timeout` has no meaning in one process."""
        replies = []
        for message in messages:
            self._name(message)
            replies.append(self._deliver(message))
        return replies

    def _deliver(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        # Strategies put one RecordDict object into all messages of a round, and a client may change what it gets.
        message.content = _isolated(message.content)
        for alterer in self._alterers:
            alterer(message)
        self._show(message)
        if node not in self.contexts:
            reply = Message(Error(CLIENT_RAISED, f"there is no node {node}"), reply_to=message)
        else:
            reply = self._work(message, node)
        self._name(reply)
        self._show(reply)
        return reply

    def _name(self, message: Message) -> None:
        self._sent += 1
        set_message_id(message, f"{self._run.run_id}-{self._sent}")

    def _work(self, message: Message, node: int) -> Message:
        try:
            return self._app(message, self.contexts[node])
        except ProtocolError as error:  # said on purpose, in words that need no place in the code
            return Message(Error(CLIENT_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({place.name}, line {place.lineno})"
            return Message(Error(CLIENT_RAISED, reason), reply_to=message)

    def _show(self, message: Message) -> None:
        for observer in self._observers:
            observer(message)


def _isolated(content: RecordDict) -> RecordDict:
    """New records over the same arrays, so that what one holder adds or removes is not seen by the next."""
    out = RecordDict()
    for key, record in content.items():
        out[key] = record.copy()
    return out


def client_of(message: Message) -> int:
    """The client, counted from 0, at the other end of a message's link."""
    node = message.metadata.src_node_id
    return client_at(message.metadata.dst_node_id if node == SERVER_NODE else node)


def client_at(node: int) -> int:
    """What a node's client is called: counted from 0 on this grid. Flower's own engines give nodes random ids below
    2^64, while its records hold signed integers.
    """
    return (node - 1) % 2**63
