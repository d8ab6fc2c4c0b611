"""What a malicious server does: messages altered in its place, before they leave it, as far as powers are granted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType
from torch import Tensor

import fedsim.grids.flower_internals as flower
from fedsim import protocol
from fedsim.experiment import AdversaryEntry, Experiment
from fedsim.grids.flower_internals import SERVER_NODE
from fedsim.grids.watched import client_of
from fedsim.secagg.base import RECORD


class Tampering:
    """Changes messages from the server for all adversaries that are granted a power; see `base.Derivation`.

    warn: gets a line where a plugin fails; the message goes out as it was then.
    """

    def __init__(self, experiment: Experiment, warn: Callable[[str], None]) -> None:
        self._entries = [entry for entry in experiment.adversaries if entry.powers]
        self._warn = warn

    def __call__(self, message: Message) -> None:
        """Alter one message, if it is for any of them to alter."""
        if message.metadata.src_node_id != SERVER_NODE or not self._entries:
            return
        kind, _, stage = message.metadata.message_type.partition(".")
        round_ = int(message.metadata.group_id)
        for entry in self._entries:
            if round_ not in entry.rounds:
                continue
            try:
                if kind == MessageType.TRAIN and "alter_model" in entry.powers:
                    self._model(entry, round_, message)
                elif kind == MessageType.QUERY and "alter_requests" in entry.powers:
                    self._request(entry, round_, stage, message)
            except Exception as error:
                self._warn(
                    f"adversary '{entry.id}' failed to alter a message to client {client_of(message)} in round "
                    f"{round_}: {type(error).__name__}: {error}"
                )

    def _model(self, entry: AdversaryEntry, round_: int, message: Message) -> None:
        parameters: Mapping[str, Tensor] = flower.tensors_in(message.content, protocol.ARRAYS)
        for step in _with(entry, "alter_model"):
            altered = step.alter_model(round_, client_of(message), entry.targets, parameters)
            _check_model(altered, parameters)
            parameters = altered
        message.content[protocol.ARRAYS] = flower.to_record(
            {name: value.detach() for name, value in parameters.items()}
        )

    def _request(self, entry: AdversaryEntry, round_: int, stage: str, message: Message) -> None:
        record = message.content.get(RECORD)
        if not isinstance(record, ConfigRecord):
            return
        request: Mapping[str, Any] = dict(record)
        for step in _with(entry, "alter_request"):
            request = step.alter_request(round_, client_of(message), entry.targets, stage, request)
        message.content[RECORD] = ConfigRecord(dict(request))


def _with(entry: AdversaryEntry, method: str) -> Iterator[Any]:
    steps = [entry.derive.settings] if entry.derive else []
    yield from (step for step in [*steps, entry.plugin.settings] if hasattr(step, method))


def _check_model(altered: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    for name, value in parameters.items():
        if name not in altered or altered[name].shape != value.shape or altered[name].dtype != value.dtype:
            raise ValueError(f"alter_model must return every parameter in its shape and type; {name} is amiss")
