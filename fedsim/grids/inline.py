"""A Flower Grid in this process: every client of a round, one after another, without sockets, workers or serialisation.

It runs any Message-API ServerApp and ClientApp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from flwr.app import Message
from flwr.clientapp import ClientApp

from fedsim.grids.answering import answered, refused
from fedsim.grids.watched import WatchedGrid

Ahead = Callable[[Sequence[Message]], None]
"""Gets the messages of a push before the first of them is delivered."""


class InlineGrid(WatchedGrid):
    """Runs `client_app` for `clients` nodes.

    ahead: may work out for all messages together what the clients will then be asked for one by one.
    """

    def __init__(self, client_app: ClientApp, clients: int, run_id: int = 1, ahead: Ahead | None = None) -> None:
        super().__init__(clients, run_id)
        self._app, self._ahead = client_app, ahead
        self._waiting: dict[str, Message] = {}

    def work_ahead(self, ahead: Ahead | None) -> None:
        """Let `ahead` see the messages of each push from now on."""
        self._ahead = ahead

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages for delivery. Returns the ids to pull replies by."""
        pushed = list(messages)
        for message in pushed:
            self._name(message)
            self._waiting[message.metadata.message_id] = message
        if self._ahead is not None:
            self._ahead(pushed)
        return [message.metadata.message_id for message in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The replies to pushed messages, one by one: a client works when its reply is asked for, so that whoever
        uses the replies as they come need not hold all of them. Each can be pulled once.
        """
        for id_ in list(message_ids):
            if id_ in self._waiting:
                yield self._deliver(self._waiting.pop(id_))

    def _deliver(self, message: Message) -> Message:
        self._outgoing(message)
        node = message.metadata.dst_node_id
        if node not in self.contexts:
            return self._incoming(refused(message, f"there is no node {node}"))
        return self._incoming(answered(self._app, message, self.contexts[node]))
