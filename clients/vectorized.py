"""The clients of a round trained as one computation, where the experiment asks for it and where that can be done.

A grid shows the train requests of a round before the first client is asked (`Vectorized`). A client that is then asked
to train from these very tensors is given its part of a computation for many (`Workbench.train`); whoever is asked
anything else, for example from a model that was altered on its way, trains by itself. What a computation has made is
held until the next one, and made again, to the same bits, if it is asked for again within the round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from flwr.app import Message, MessageType
from torch import Tensor

import fedsim.grids.flower_internals as flower
from fedsim import batchnorm, protocol
from fedsim.clients import stacked, training
from fedsim.clients.requests import round_of
from fedsim.clients.training import Trained
from fedsim.clients.workbench import Workbench, workbench
from fedsim.experiment import Experiment, LocalTraining
from fedsim.grids.watched import client_of

TRIAL_STEPS = 2
TRIAL_CLIENTS = 4
"""How many steps the trial of `auto` takes, and how many clients it trains one by one to compare."""

Warn = Callable[[str], None]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Decision:
    """Whether clients train as one computation, and why. alone, together: seconds a client in the trial, if there was
    one. A choice by the clock may be another one next time, and with it the rounding: it belongs into the record.
    """

    vectorized: bool
    reason: str
    alone: float | None = None
    together: float | None = None

    def as_json(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "used": self.vectorized,
            "reason": self.reason,
            "seconds_one_by_one": self.alone,
            "seconds_together": self.together,
        }


@dataclass
class _Round:
    """The requests of a round: what all are sent, who is computed with whom, and what the last computation made."""

    number: int
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    chunks: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    made: Mapping[int, Trained] = field(default_factory=dict)

    def is_of(self, round_: int, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> bool:
        """Whether these are the very tensors of the round."""
        return round_ == self.number and _same(parameters, self.parameters) and _same(buffers, self.buffers)


class Vectorized:
    """Trains the clients of a workbench together. decided: whether, where an earlier trial has shown it.

    decision: None before the first round.
    """

    def __init__(
        self, place: Workbench, warn: Warn, *, decided: bool | None = None, clock: Clock = time.perf_counter
    ) -> None:
        self._place, self._warn, self._decided, self._clock = place, warn, decided, clock
        self._round: _Round | None = None
        self._told: set[str] = set()
        self.decision: Decision | None = None

    def __call__(self, messages: Sequence[Message]) -> None:
        """Look at the messages of a push. Train requests of another round end what is known of the last one."""
        requests = [one for one in messages if one.metadata.message_type == MessageType.TRAIN]
        if not requests:
            return
        self._round = None
        if self.decision is not None and not self.decision.vectorized:
            return
        sent = [flower.tensors_in(one.content, protocol.ARRAYS) for one in requests]
        kept = [flower.tensors_in(one.content, protocol.BUFFERS) for one in requests]
        found = _Round(round_of(requests[0].content), sent[0], kept[0])
        clients = [
            client_of(one)
            for one, parameters, buffers in zip(requests, sent, kept, strict=True)
            if found.is_of(round_of(one.content), parameters, buffers)
        ]
        self._plan(found, clients)

    def take(
        self, client: int, round_: int, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> Trained | None:
        """What came of a client's training in the round that is going on; None for one that is left to itself."""
        now = self._round
        if now is None or client not in now.chunks or not now.is_of(round_, parameters, buffers):
            return None
        if client not in now.made:
            now.made = {}  # before the next ones take as much
            try:
                now.made = self._train(now, now.chunks[client])
            except torch.OutOfMemoryError:
                count = len(now.chunks[client])
                self.decision = Decision(False, f"the device has no room for {count} clients together")
                self._round = None
                self._tell(f"runtime.vectorized: clients train one by one from now on; {self.decision.reason}")
                return None
        return now.made[client]

    def _plan(self, found: _Round, clients: Sequence[int]) -> None:
        able, place = [], self._place
        for client in clients:
            if place.makes_gradients(client):
                self._tell("clients with a defense that makes their gradients train one by one")
            elif len(place.federation.shares[client]):
                able.append(client)
        if not able:
            return
        self._load(found)
        if self.decision is None:
            reason = self._objection(found, able[0])
            if reason:
                self.decision = Decision(False, reason)
                self._tell(f"runtime.vectorized: clients train one by one; {reason}")
                return
        chunks = self._chunks(found, able)
        if not chunks:
            self._tell("runtime.vectorized: in this round no two clients can be computed together")
            return
        if self.decision is None:
            self.decision = self._decide(found, max(chunks, key=len))
            if not self.decision.vectorized:
                return
        found.chunks = {client: chunk for chunk in chunks for client in chunk}
        self._round = found

    def _chunks(self, found: _Round, clients: Iterable[int]) -> list[tuple[int, ...]]:
        """Who is computed with whom: those of equal settings, in the order of the requests, as many as there is room
        for. Whoever has no companion is left out.
        """
        place = self._place
        kinds: dict[Any, list[int]] = {}
        for client in clients:
            settings = place.experiment.clients.training(client)
            # Encoded labels may be of another kind.
            kinds.setdefault((_rates(settings), settings.defenses if not place.is_plain(client) else ()), []).append(
                client
            )
        out = []
        for members in kinds.values():
            steps = {client: place.steps(client, found.number) for client in members}
            longest = max(members, key=lambda one: max(map(len, steps[one])))
            widest = max(steps[longest], key=len)
            batch = next(place.normalised(longest, found.number, [widest]))
            held = 1 if place.is_plain(longest) else max(map(len, steps.values()))
            size = stacked.at_once(place.body, batch, held)
            out += [tuple(members[at : at + size]) for at in range(0, len(members), size)]
        return [chunk for chunk in out if len(chunk) > 1]

    def _objection(self, found: _Round, client: int) -> str | None:
        """Why nobody can be trained so, whoever it is; None if that cannot be said beforehand."""
        place = self._place
        policy = place.experiment.clients.batchnorm
        if batchnorm.layers(place.model) and policy != "freeze":
            return f'under batchnorm = "{policy}" layers keep statistics of every batch, each client its own'
        if place.body.regularised:
            return "the model draws noise, or adds to the loss, in training"
        steps = place.steps(client, found.number)[:1]
        return stacked.objection(place.body, found.parameters, next(place.normalised(client, found.number, steps)))

    def _decide(self, found: _Round, chunk: tuple[int, ...]) -> Decision:
        """By the file or, for `auto`, by an earlier decision or by the clock."""
        if self._place.experiment.runtime.vectorized == "on":
            return Decision(True, 'vectorized = "on"')
        if self._decided is not None:
            return Decision(self._decided, "as decided when the run began")
        some = chunk[:TRIAL_CLIENTS]
        together = self._timed(lambda: self._train(found, chunk, TRIAL_STEPS)) / len(chunk)
        alone = self._timed(lambda: [self._alone(found, client) for client in some]) / len(some)
        faster = together < alone
        return Decision(
            faster, f"{'faster' if faster else 'not faster'} in a trial of {TRIAL_STEPS} steps", alone, together
        )

    def _timed(self, work: Callable[[], object]) -> float:
        """Seconds, after a first time that is not counted."""
        work()
        self._settle()
        start = self._clock()
        work()
        self._settle()
        return self._clock() - start

    def _settle(self) -> None:
        if self._place.device.type == "cuda":
            torch.cuda.synchronize(self._place.device)

    def _alone(self, found: _Round, client: int) -> Trained:
        place, clients = self._place, self._place.experiment.clients
        steps = place.steps(client, found.number)[:TRIAL_STEPS]
        batches = place.normalised(client, found.number, steps)
        settings = clients.training(client)
        return training.train(
            place.body, found.parameters, batches, settings, clients.algorithm, clients.batchnorm, None
        )

    def _train(self, found: _Round, chunk: Sequence[int], limit: int | None = None) -> dict[int, Trained]:
        place, clients = self._place, self._place.experiment.clients
        self._load(found)
        trainees = []
        for client in chunk:
            steps = place.steps(client, found.number)
            batches = place.normalised(client, found.number, steps)
            trainees.append(stacked.Trainee(islice(batches, limit), [len(one) for one in steps[:limit]]))
        done = stacked.train(place.body, found.parameters, trainees, clients.training(chunk[0]), clients.algorithm)
        return dict(zip(chunk, done, strict=True))

    def _load(self, found: _Round) -> None:
        """Bring the model where a client's training begins."""
        place = self._place
        batchnorm.load_statistics(place.model, {**place.initial_statistics, **found.buffers})
        batchnorm.training_mode(place.model, place.experiment.clients.batchnorm, place.body.modules)

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._warn(text)


def ahead_of(experiment: Experiment, warn: Warn, *, decided: bool | None = None) -> Vectorized | None:
    """What a grid in this process shows the messages of each push; None where clients are to train one by one.

    decided: what the trial of `auto` has shown when the run began, for one that goes on.
    """
    place = workbench(experiment)
    if experiment.runtime.vectorized == "off":
        place.ahead = None
        return None
    place.ahead = made = Vectorized(place, warn, decided=decided)
    return made


def _rates(settings: LocalTraining) -> tuple[float, float, float]:
    return settings.learning_rate, settings.momentum, settings.weight_decay


def _same(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(value is others[name] for name, value in some.items())
