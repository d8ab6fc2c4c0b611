"""What all grids of fedsim have in common: nodes with their contexts, names for messages, and who may look at them.

An observer sees every message on its way, which is where the wiretap is attached; an alterer may change what the server
sends. Where clients work is the business of the grid that is made from this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.grids.flower_internals import SERVER_NODE, Run, empty_run, set_message_id, take_identity

Observer = Callable[[Message], None]
Alterer = Callable[[Message], None]


class WatchedGrid(Grid):
    """The nodes 1 to n of a run (client i is node i + 1, partition i).

    contexts: by node. A client's context (its `state`) is kept from round to round, as Flower keeps it, and always
    here, wherever the client's app runs.
    """

    def __init__(self, clients: int, run_id: int = 1) -> None:
        self._observers: list[Observer] = []
        self._alterers: list[Alterer] = []
        self._run = empty_run(run_id)
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

    def close(self) -> None:
        """End what works for the grid."""

    def describe(self) -> dict[str, Any]:
        """How clients were played, as JSON data for the manifest."""
        return {}

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

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver messages and return the replies in the same order. `timeout` has no meaning here."""
        return list(self.pull_messages(self.push_messages(messages)))

    def _name(self, message: Message) -> None:
        self._sent += 1
        set_message_id(message, f"{self._run.run_id}-{self._sent}")

    def _outgoing(self, message: Message) -> None:
        """A message leaves the server: it may be altered, and is seen."""
        # Strategies put one RecordDict object into all messages of a round, and a client may change what it gets.
        message.content = _isolated(message.content)
        for alterer in self._alterers:
            alterer(message)
        self._show(message)

    def _incoming(self, reply: Message) -> Message:
        """A reply arrives. The client's context is what it left behind."""
        self._name(reply)
        self._show(reply)
        return reply

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
