"""The wiretap: the only gate between the federation and an adversary.

The grid shows it every message, and the server what a secure aggregation has told it. It keeps, for the clients and
rounds that an adversary targets, what the threat model's table says that the vantage shows, adds what the threat model
grants besides, and hands frozen copies on. What is not in the table never gets past this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from flwr.app import Message, MessageType, RecordDict
from torch import Tensor

import fedsim.grids.flower_internals as flower
from fedsim import protocol
from fedsim.adversaries import threat
from fedsim.adversaries.base import Observation
from fedsim.adversaries.exchange import Exchange, size
from fedsim.adversaries.sums import of_total, summed
from fedsim.experiment import AdversaryEntry, Experiment, LocalTraining
from fedsim.grids.flower_internals import SERVER_NODE
from fedsim.grids.watched import client_of
from fedsim.secagg.base import Total


class Witness(Protocol):
    """Tells what a client privately has. Asked only for what the threat model grants."""

    def __call__(self, client: int, round_: int, item: str, request: RecordDict) -> Mapping[str, Tensor]:
        """Tensors below `known/` (or `own/` for the item `own_data`): item is a word of `fedsim.experiment`.

        For `colluders`: `update/NAME` and `sent_buffers/NAME`, before masking, and `numbers`, int64 (2,): the client's
        examples and steps.
        """
        ...


OnObservation = Callable[[AdversaryEntry, Observation], None]


class Wiretap:
    """An observer of the grid's messages for all adversaries of an experiment.

    public: what everybody knows of the training protocol: model, image shape, classes, normalisation, and how secure
    aggregation counts, if there is one (see Observation).
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
        self._heard: dict[tuple[int, int], Exchange] = {}
        self._parts: dict[tuple[str, int], list[Observation]] = {}

    def __call__(self, message: Message) -> None:
        """Look at one message on its way."""
        kind, _, stage = message.metadata.message_type.partition(".")
        if kind not in (MessageType.TRAIN, MessageType.QUERY):
            return
        round_, client = int(message.metadata.group_id), client_of(message)
        self._end_rounds(before=round_)
        if not any(True for _ in self._interested(round_, client)):
            return
        down = message.metadata.src_node_id == SERVER_NODE
        if message.has_error():
            return
        heard = self._heard.setdefault((round_, client), Exchange())
        if down:
            heard.bytes_down += size(message.content)
        else:
            heard.bytes_up += size(message.content)
        if kind == MessageType.QUERY:
            if not down:
                heard.answers[stage] = message.content
        elif down:
            heard.request = message.content
        elif heard.request is not None:
            # Of clients that are in a sum alone, it is enough to know that they replied.
            shown = any(client in _watched(entry) for entry in self._interested(round_, client))
            heard.reply = message.content if shown else RecordDict()
            if self._experiment.server.secure_aggregation is None:
                self._seen_plainly(round_, client, self._heard.pop((round_, client)))

    def total(self, round_: int, total: Total) -> None:
        """Look at what a secure aggregation has told the server in a round."""
        for entry in self._experiment.adversaries:
            # A derivation makes use of sums without any target, too.
            about = entry.derive is not None or set(entry.targets) & set(total.clients)
            if entry.vantage == "server" and round_ in entry.rounds and about:
                self._hand_over(entry, self._of_total(entry, round_, total))

    def end_round(self) -> None:
        """Hand over what is complete, when a round is over."""
        self._end_rounds()

    def _end_rounds(self, before: float = math.inf) -> None:
        """Hand over what is complete when a round is over, so that it is not kept longer than need be."""
        for name, round_ in sorted(key for key in self._parts if key[1] < before):
            entry = next(one for one in self._experiment.adversaries if one.id == name)
            self._hand_over(entry, summed(self._parts.pop((name, round_))))
        for round_, client in sorted(key for key in self._heard if key[0] < before):
            heard = self._heard.pop((round_, client))
            if heard.reply is not None:
                for entry in self._interested(round_, client):
                    if client in _watched(entry):
                        self._hand_over(entry, self._sealed(entry, round_, client, heard))

    def _interested(self, round_: int, client: int) -> Iterator[AdversaryEntry]:
        sealed = self._experiment.server.secure_aggregation is not None
        for entry in self._experiment.adversaries:
            # What is known of a sum is known of every client in it.
            everyone = sealed and entry.vantage == "server"
            if round_ in entry.rounds and (everyone or client in _watched(entry)):
                yield entry

    def _seen_plainly(self, round_: int, client: int, heard: Exchange) -> None:
        for entry in self._interested(round_, client):
            seen = self._observe(entry, round_, client, heard)
            if entry.aggregate:
                self._parts.setdefault((entry.id, round_), []).append(seen)
            else:
                self._hand_over(entry, seen)

    def _observe(self, entry: AdversaryEntry, round_: int, client: int, heard: Exchange) -> Observation:
        """One client's update, where the vantage shows it."""
        view = threat.view(entry, self._experiment)
        tensors, facts = self._before_update(entry, round_, client, heard)
        assert heard.reply is not None
        if "update" in view.sees:
            tensors.update(_tensors("update", heard.reply, protocol.UPDATE))
            tensors.update(_tensors("sent_buffers", heard.reply, protocol.BUFFERS))
        if "num_examples" in view.sees:
            metrics = heard.reply[protocol.METRICS]
            facts["num_examples"] = metrics[protocol.NUM_EXAMPLES]
            facts["num_steps"] = metrics[protocol.NUM_STEPS]
        return self._made(entry, round_, client, tensors, facts, view.has)

    def _sealed(self, entry: AdversaryEntry, round_: int, client: int, heard: Exchange) -> Observation:
        """One client under secure aggregation: its masked vector and shares, as far as the vantage shows them."""
        view = threat.view(entry, self._experiment)
        tensors, facts = self._before_update(entry, round_, client, heard)
        tensors.update(heard.sealed(view.sees))
        # Of the sum and of the clients that it works with, this observation holds nothing.
        granted = view.has - ({"update", "num_examples", "batch_statistics"} - view.knows) - {"colluders"}
        return self._made(entry, round_, client, tensors, facts, granted)

    def _of_total(self, entry: AdversaryEntry, round_: int, total: Total) -> Observation:
        view = threat.view(entry, self._experiment)
        parts, counts = [], []
        # The request of a target first: an adversary may have altered those of others.
        first = next((client for client in total.clients if client in entry.targets), total.clients[0])
        request = self._heard[round_, first].request
        for client in total.clients:
            heard = self._heard[round_, client]
            tensors, facts = self._before_update(entry, round_, client, heard)
            parts.append(Observation(round_, client, entry.vantage, tensors, facts))
            labels = tensors if "known/labels" in tensors else self._known(client, round_, "labels", heard)
            counts.append(len(labels["known/labels"]))
        seen = of_total(parts, counts, total, exact=entry.derive is not None)
        tensors, facts = dict(seen.tensors), dict(seen.facts)
        tensors.update({name: value for name, value in self._model(request).items() if name in tensors})
        if "num_examples" not in view.sees:
            del facts["num_examples"], facts["num_steps"]
        if "update" not in view.sees:
            hidden = ("update/", "sent_buffers/", "sum/")
            tensors = {name: value for name, value in tensors.items() if not name.startswith(hidden)}
        facts["targets"] = list(entry.targets)
        if "colluders" in view.sees:
            facts["colluders"] = {}
            for client in sorted(set(entry.colluders) & set(total.clients)):
                own = dict(self._known(client, round_, "colluders", self._heard[round_, client]))
                examples, steps = own.pop("numbers").tolist()
                facts["colluders"][str(client)] = {"num_examples": examples, "num_steps": steps}
                tensors.update({f"colluder/{client}/{name}": value for name, value in own.items()})
        granted = view.has - {"masked_update", "encrypted_shares", "opened_shares"}
        return self._made(entry, round_, seen.client, tensors, facts, granted)

    def _before_update(
        self, entry: AdversaryEntry, round_: int, client: int, heard: Exchange
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is seen or known of a client in a round besides what it sent."""
        view = threat.view(entry, self._experiment)
        tensors: dict[str, Tensor] = {}
        facts: dict[str, Any] = {}
        if "sizes" in view.sees:
            facts["bytes_down"], facts["bytes_up"] = heard.bytes_down, heard.bytes_up
        if "global_model" in view.sees:
            facts.update(self._public)
            facts.update(_protocol(self._experiment.clients.training(client)))
            tensors.update(self._model(heard.request))
        for item in sorted(view.knows | (view.sees & {"own_data"})):
            if item == "defenses":
                settings = self._experiment.clients.training(client)
                facts["defenses"] = [defense.describe() for defense in settings.defenses]
            else:
                tensors.update(self._known(client, round_, item, heard))
        return tensors, facts

    def _known(self, client: int, round_: int, item: str, heard: Exchange) -> Mapping[str, Tensor]:
        assert heard.request is not None
        return self._witness(client, round_, item, heard.request)

    def _model(self, request: RecordDict | None) -> dict[str, Tensor]:
        assert request is not None
        return {**_tensors("model", request, protocol.ARRAYS), **_tensors("buffers", request, protocol.BUFFERS)}

    def _made(
        self,
        entry: AdversaryEntry,
        round_: int,
        client: int,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        granted: frozenset[str] | set[str],
    ) -> Observation:
        if "training_details" not in granted:
            # FedSGD has no local steps, so that its one step is no detail.
            kept = {"num_steps"} if self._experiment.clients.algorithm == "fedsgd" else set()
            facts = {key: value for key, value in facts.items() if key in kept or key not in _DETAILS}
        frozen = {name: value.detach().cpu().clone() for name, value in tensors.items()}
        told = {**facts, "granted": sorted(granted)}
        return Observation(round_, client, entry.vantage, MappingProxyType(frozen), MappingProxyType(told))


_DETAILS = ("learning_rate", "batch_size", "momentum", "weight_decay", "num_steps")
"""The facts that are training details."""


def _watched(entry: AdversaryEntry) -> tuple[int | None, ...]:
    return (entry.member,) if entry.vantage == "client" else entry.targets


def _protocol(training: LocalTraining) -> dict[str, Any]:
    """What the server asks of a client's local steps."""
    return {key: getattr(training, key) for key in ("learning_rate", "batch_size", "momentum", "weight_decay")}


def _tensors(prefix: str, content: RecordDict, record: str) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value for name, value in flower.tensors_in(content, record).items()}
