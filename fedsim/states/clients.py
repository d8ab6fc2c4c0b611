"""The states of a grid's clients; since the last checkpoint, only those who heard a message can have another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Message

from fedsim.grids.flower_internals import SERVER_NODE
from fedsim.grids.watched import WatchedGrid

_PREFIX = "client "


class ClientStates:
    """Takes the states of a grid's clients out, and puts them back."""

    def __init__(self, grid: WatchedGrid) -> None:
        self._grid = grid
        self._heard: set[int] = set()
        self._held: set[int] = set()
        """Clients whose state is in the latest checkpoint."""
        grid.watch(self._note)

    def _note(self, message: Message) -> None:
        if message.metadata.src_node_id == SERVER_NODE:
            self._heard.add(message.metadata.dst_node_id)

    def changed(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """For `Checkpoints.write`: states by name, and the names of those that are as they were. Those of clients that
        keep nothing are not among either.
        """
        known = self._heard & set(self._grid.contexts)
        full = {node for node in known if self._grid.contexts[node].state}
        same = self._held - known
        self._held, self._heard = same | full, set()
        states = {f"{_PREFIX}{node}": self._grid.contexts[node].state for node in sorted(full)}
        return states, tuple(f"{_PREFIX}{node}" for node in sorted(same))

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what a checkpoint holds of clients."""
        for node, held in _of_clients(state.items()):
            self._grid.contexts[node].state = held
            self._held.add(node)


def _of_clients(items: Iterable[tuple[str, Any]]) -> Iterable[tuple[int, Any]]:
    return ((int(name.removeprefix(_PREFIX)), held) for name, held in items if name.startswith(_PREFIX))
