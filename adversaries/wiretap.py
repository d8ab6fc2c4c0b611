"""The wiretap: the only gate between the federation and an adversary.

The grid shows it every message. It keeps, for the clients and rounds that an adversary targets, what the threat model's
table says that the vantage shows, adds what the threat model grants besides, and hands frozen copies on. What is not in
the table never gets past this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from flwr.app import Message, MessageType, RecordDict
from torch import Tensor

import fedsim.grids.flower_internals as flower
from fedsim import protocol
from fedsim.adversaries import threat
from fedsim.adversaries.base import Observation
from fedsim.experiment import AdversaryEntry, Experiment, LocalTraining
from fedsim.grids.flower_internals import SERVER_NODE
from fedsim.grids.inline import client_of


class Witness(Protocol):
    """Tells what a client privately has. Asked only for what the threat model grants."""

    def __call__(self, client: int, round_: int, item: str, request: RecordDict) -> Mapping[str, Tensor]:
        """Tensors below `known/` (or `own/` for the item `own_data`): item is a word of `fedsim.experiment`."""
        ...


OnObservation = Callable[[AdversaryEntry, Observation], None]


class Wiretap:
    """An observer of the grid's messages for all adversaries of an experiment.

    public: what everybody knows of the training protocol: model, image shape, classes, normalisation (see Observation).
    """

    def __init__(
        self,
        experiment: Experiment,
        public: Mapping[str, Any],
        witness: Witness,
        on_observation: OnObservation,
    ) -> None:
        self._experiment = experiment
        self._public = dict(public)
        self._witness = witness
        self._hand_over = on_observation
        self._requests: dict[tuple[int, int], RecordDict] = {}
        self._parts: dict[tuple[str, int], list[Observation]] = {}

    def __call__(self, message: Message) -> None:
        """Look at one message on its way."""
        if message.metadata.message_type != MessageType.TRAIN:
            return
        round_, client = int(message.metadata.group_id), client_of(message)
        self._hand_over_sums(before=round_)
        if not any(True for _ in self._interested(round_, client)):
            return
        if message.metadata.src_node_id == SERVER_NODE:
            self._requests[round_, client] = message.content
            return
        request = self._requests.pop((round_, client), None)
        if request is None or message.has_error():
            return
        for entry in self._interested(round_, client):
            seen = self._observe(entry, round_, client, request, message.content)
            if entry.aggregate:
                self._parts.setdefault((entry.id, round_), []).append(seen)
            else:
                self._hand_over(entry, seen)

    def close(self) -> None:
        """Hand over the sums of the last round, when all rounds are over."""
        self._hand_over_sums()

    def _hand_over_sums(self, before: float = math.inf) -> None:
        """Those of the rounds that are over, so that their parts are not kept longer than need be."""
        for name, round_ in sorted(key for key in self._parts if key[1] < before):
            entry = next(one for one in self._experiment.adversaries if one.id == name)
            self._hand_over(entry, summed(self._parts.pop((name, round_))))

    def _interested(self, round_: int, client: int) -> Iterator[AdversaryEntry]:
        for entry in self._experiment.adversaries:
            watched = (entry.member,) if entry.vantage == "client" else entry.targets
            if round_ in entry.rounds and client in watched:
                yield entry

    def _observe(
        self, entry: AdversaryEntry, round_: int, client: int, request: RecordDict, reply: RecordDict
    ) -> Observation:
        view = threat.view(entry, self._experiment)
        tensors: dict[str, Tensor] = {}
        facts: dict[str, Any] = {}
        if "sizes" in view.sees:
            facts["bytes_down"], facts["bytes_up"] = _size(request), _size(reply)
        if "global_model" in view.sees:
            facts.update(self._public)
            facts.update(_protocol(self._experiment.clients.training(client)))
            tensors.update(_tensors("model", request, protocol.ARRAYS))
            tensors.update(_tensors("buffers", request, protocol.BUFFERS))
        if "update" in view.sees:
            tensors.update(_tensors("update", reply, protocol.UPDATE))
            tensors.update(_tensors("sent_buffers", reply, protocol.BUFFERS))
        if "num_examples" in view.sees:
            metrics = reply[protocol.METRICS]
            facts["num_examples"] = metrics[protocol.NUM_EXAMPLES]
            facts["num_steps"] = metrics[protocol.NUM_STEPS]
        for item in sorted(view.knows | (view.sees & {"own_data"})):
            if item == "defenses":
                settings = self._experiment.clients.training(client)
                facts["defenses"] = [defense.describe() for defense in settings.defenses]
            else:
                tensors.update(self._witness(client, round_, item, request))
        facts["granted"] = sorted(view.has)
        frozen = {name: value.detach().cpu().clone() for name, value in tensors.items()}
        return Observation(round_, client, entry.vantage, MappingProxyType(frozen), MappingProxyType(facts))


def _protocol(training: LocalTraining) -> dict[str, Any]:
    """What the server asks of a client's local steps."""
    return {key: getattr(training, key) for key in ("learning_rate", "batch_size", "momentum", "weight_decay")}


def summed(parts: Sequence[Observation]) -> Observation:
    """What is left of several clients' observations in a round where only the sum is shown; see `Observation`.

    Labels that are granted stand one client after the other; granted statistics are means, as the update is. Sizes are
    added up. `num_steps` is the mean, weighted as the update and rounded; of the other facts, what is not the same for
    all clients is left out.
    """
    parts = sorted(parts, key=lambda seen: seen.client)
    counts = torch.tensor([float(seen.facts["num_examples"]) for seen in parts], dtype=torch.float64)
    shares = counts / counts.sum()
    first = parts[0]
    tensors = dict(first.tensors)
    for name in tensors:
        values = [seen.tensors[name] for seen in parts]
        if name == "known/labels":
            tensors[name] = torch.cat(values)
        elif not name.startswith(("model/", "buffers/")):
            mean = sum(share * value.double() for share, value in zip(shares, values, strict=True))
            tensors[name] = torch.as_tensor(mean).to(values[0].dtype)
    facts = {key: value for key, value in first.facts.items() if all(seen.facts.get(key) == value for seen in parts)}
    for key in ("bytes_down", "bytes_up", "num_examples"):
        facts[key] = sum(seen.facts[key] for seen in parts)
    steps = torch.tensor([float(seen.facts["num_steps"]) for seen in parts], dtype=torch.float64)
    facts["num_steps"] = max(1, round(float((shares * steps).sum())))
    facts["clients"] = [seen.client for seen in parts]
    return Observation(first.round, first.client, first.vantage, MappingProxyType(tensors), MappingProxyType(facts))


def _tensors(prefix: str, content: RecordDict, record: str) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value for name, value in flower.tensors_in(content, record).items()}


def _size(content: RecordDict) -> int:
    """Bytes of the tensors in a message: its length on the wire but for some headers."""
    return sum(
        value.numel() * value.element_size()
        for record in content.array_records.values()
        for value in flower.from_record(record).values()
    )
