"""A Flower Grid whose clients work on a Ray cluster: the same replies, bit for bit, in the same order, as in process.

Messages are altered and shown when they leave, contexts and replies when they are asked for, in the order of asking: so
nobody who watches can tell how many workers there are, or which of them was first.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, Message
from flwr.clientapp import ClientApp

from fedsim.cluster.clients import ClientPool, Task
from fedsim.cluster.connecting import Cluster
from fedsim.cluster.sizing import Size
from fedsim.grids import plain
from fedsim.grids.answering import refused
from fedsim.grids.watched import WatchedGrid


@dataclass
class _Pending:
    """A message that nobody has asked about yet. sent: whether a worker has it, or will without further ado."""

    message: Message
    task: Task
    sent: bool = False


class RayGrid(WatchedGrid):
    """Runs client apps in workers of a cluster.

    make_app: called in each worker once; it travels there, so it is a function of a module, or a partial of one.
    prepare: besides, what a worker loads before its first message. size: of the workers. warn: gets lines about them.
    Raises InputError where the cluster has no room for them. They start at once, in the background; `close` ends them.
    """

    def __init__(
        self,
        cluster: Cluster,
        make_app: Callable[[], ClientApp],
        clients: int,
        *,
        size: Size | None = None,
        warn: Callable[[str], None],
        prepare: Callable[[], object] | None = None,
        run_id: int = 1,
    ) -> None:
        super().__init__(clients, run_id)
        self.pool = ClientPool(cluster, make_app, size or Size(), warn, prepare=prepare, run_id=run_id)
        self._waiting: dict[str, _Pending] = {}
        # By node, the message that it works on: the next one begins with what that one leaves in the context.
        self._at_work: dict[int, str] = {}
        self._pushed = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages to the workers. Returns the ids to pull replies by."""
        pushed = list(messages)
        for message in pushed:
            self._name(message)
        for message in pushed:
            self._outgoing(message)
        bundle, places = self._shared(pushed)
        tasks = []
        for message in pushed:
            node, id_ = message.metadata.dst_node_id, message.metadata.message_id
            self._pushed += 1
            one = _Pending(message, Task(self._pushed, functools.partial(self._packed, message, places), bundle))
            self._waiting[id_] = one
            if node in self.contexts and node not in self._at_work:
                tasks.append(self._begun(one))
        self.pool.send(tasks)
        return [message.metadata.message_id for message in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The replies to pushed messages, one by one in this order, each as soon as it and those before it are there.
        Each can be pulled once.
        """
        for id_ in list(message_ids):
            if id_ in self._waiting:
                yield self._delivered(id_)

    def describe(self) -> dict[str, Any]:
        """How many workers there are, and how many have died and were replaced."""
        return {"workers": self.pool.count, "workers_lost": self.pool.failures}

    def close(self) -> None:
        """End the workers."""
        self.pool.close()

    def _delivered(self, id_: str) -> Message:
        one = self._waiting.pop(id_)
        message, node = one.message, one.message.metadata.dst_node_id
        if node not in self.contexts:
            return self._incoming(refused(message, f"there is no node {node}"))
        if not one.sent:  # it waited for the client's earlier message
            self.pool.send([self._begun(one)])
        answer = self.pool.answer(one.task.order)
        if self._at_work.get(node) == id_:
            del self._at_work[node]
        if isinstance(answer, str):
            return self._incoming(refused(message, answer))
        reply, state = answer
        self.contexts[node].state = plain.unpack_content(state, copied=True)
        # Copied, so that what is kept of a reply does not fill the cluster's object store.
        return self._incoming(plain.unpack_message(reply, copied=True))

    def _begun(self, one: _Pending) -> Task:
        one.sent = True
        self._at_work[one.message.metadata.dst_node_id] = one.message.metadata.message_id
        return one.task

    def _packed(self, message: Message, places: dict[int, int]) -> Any:
        node = message.metadata.dst_node_id
        context = self.contexts[node]
        packed = plain.pack_message(message, lambda array: places.get(plain.identity(array)))
        return packed, node, dict(context.node_config), plain.pack_content(context.state)

    def _shared(self, messages: Sequence[Message]) -> tuple[Any, dict[int, int]]:
        """Put the arrays that several messages have where all workers find them, once."""
        arrays: dict[int, Array] = {}
        times: Counter[int] = Counter()
        for message in messages:
            for array in _arrays(message):
                arrays[plain.identity(array)] = array
                times[plain.identity(array)] += 1
        several = [key for key, count in times.items() if count > 1]
        if not several:
            return None, {}
        bundle = self.pool.put([plain.pack_array(arrays[key]) for key in several])
        return bundle, {key: place for place, key in enumerate(several)}


def _arrays(message: Message) -> Iterator[Array]:
    for record in message.content.values():
        if isinstance(record, ArrayRecord):
            yield from record.values()
