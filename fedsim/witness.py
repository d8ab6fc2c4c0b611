"""Derives again what clients privately had: for what a threat model grants, and for the truth that scoring needs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import Message, MessageType, RecordDict
from torch import Tensor

import fedsim.grids.flower_internals as flower
from fedsim import batchnorm, protocol
from fedsim.clients.app import remembered
from fedsim.clients.workbench import Memory, Workbench
from fedsim.grids.flower_internals import SERVER_NODE
from fedsim.grids.watched import WatchedGrid, client_of


class Witness:
    """Derives again what a client had, and gives out the one item that is asked for."""

    def __init__(self, place: Workbench, grid: WatchedGrid) -> None:
        self._place, self._grid = place, grid
        self._memories: dict[int, Memory] = {}
        self._requests: dict[int, RecordDict] = {}
        """By client, its latest train request, as it arrived."""

    def note(self, message: Message) -> None:
        """Look at a message before the client does: what its defenses remember now is what the round begins with."""
        kind, down = message.metadata.message_type, message.metadata.src_node_id == SERVER_NODE
        if kind == MessageType.TRAIN and down:
            client = client_of(message)
            self._memories[client] = remembered(self._grid.contexts[client + 1])
            self._requests[client] = message.content

    def __call__(self, client: int, round_: int, item: str, request: RecordDict) -> Mapping[str, Tensor]:
        """Tensors by the path that an observation has for them."""
        parameters = flower.tensors_in(request, protocol.ARRAYS)
        buffers = flower.tensors_in(request, protocol.BUFFERS)
        if item == "running_statistics":
            own = flower.tensors_in(self._grid.contexts[client + 1].state, protocol.BUFFERS)
            running = own or {**self._place.initial_statistics, **buffers}
            return {_known(key): value for key, value in running.items()}
        if item == "colluders":
            return self._sent(client, round_, parameters, buffers)
        private = self._place.replay(client, round_, parameters, buffers, statistics=item == "batch_statistics")
        if item == "batch_statistics":
            return {_known(key): value for key, value in private.statistics.items()}
        if item == "labels":
            return {"known/labels": private.labels}
        if item == "mixing_indices" and private.indices is not None:
            return {"known/mixing_indices": private.indices}
        if item == "mixing_coefficients" and private.coefficients is not None:
            return {"known/mixing_coefficients": private.coefficients}
        if item == "own_data":
            return {"own/images": private.batch.images, "own/labels": private.batch.labels}
        raise ValueError(f"no witness for '{item}'")

    def update(self, client: int, round_: int) -> Mapping[str, Tensor]:
        """The update of a client in the round that is going on, after its defenses and before any masking, from the
        parameters that it was really sent.
        """
        request = self._requests[client]
        parameters = flower.tensors_in(request, protocol.ARRAYS)
        return self._again(client, round_, parameters, flower.tensors_in(request, protocol.BUFFERS))[0]

    def _sent(
        self, client: int, round_: int, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        update, statistics, numbers = self._again(client, round_, parameters, buffers)
        out = {f"update/{name}": value for name, value in update.items()}
        out.update({f"sent_buffers/{name}": value for name, value in statistics.items()})
        return {**out, "numbers": torch.tensor(numbers)}

    def _again(
        self, client: int, round_: int, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], tuple[int, int]]:
        place = self._place
        trained, examples = place.train(client, round_, parameters, buffers)
        statistics = batchnorm.sent(place.experiment.clients.batchnorm, place.model, trained.passes)
        update, _ = place.perturb(trained.update, client, round_, parameters, self._memories.get(client, {}))
        return update.tensors, statistics, (examples, trained.steps)


def _known(key: str) -> str:
    """`layer1.bn.mean` -> `known/mean/layer1.bn`."""
    layer, _, kind = key.rpartition(".")
    return f"known/{kind}/{layer}"
