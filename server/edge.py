"""The edge of the server: replies are admitted or refused, and updates become the weights that a strategy sees."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import Message, MetricRecord, RecordDict
from torch import Tensor

import fedsim.grids.flower_internals as flower
from fedsim import protocol
from fedsim.errors import ProtocolError, legible
from fedsim.grids.watched import client_at, client_of
from fedsim.reading import read_tensors
from fedsim.runs import Dropout

MOST = 2**63
"""Numbers of examples and of steps are below it."""

Spent = tuple[float, float]
"""Epsilon and delta that a client's private training has cost."""


@dataclass(frozen=True)
class Admitted:
    """A reply that passed the edge.

    loss: None where the client protects it. spent: epsilon and delta of its private training, if it has any.
    """

    client: int
    message: Message
    update: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    examples: int
    steps: float
    loss: float | None
    spent: Spent | None = None


def admit(
    replies: Iterable[Message],
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, tuple[int, ...]],
    requests: Sequence[Message] | None = None,
) -> tuple[list[Admitted], list[Dropout]]:
    """The usable replies in the order of the clients, and those that gave none as dropouts with their reasons.

    parameters: the broadcast model, for names and shapes. buffers: the names and shapes of the statistics that the
    BatchNorm policy has every client send. requests: what the replies must answer; None: whatever they answer. Of
    several usable replies of one client the first counts.
    """
    asked = None if requests is None else {client_at(one.metadata.dst_node_id): one for one in requests}
    admitted: dict[int, Admitted] = {}
    refused: dict[int, str] = {}
    for reply in sorted(replies, key=client_of):
        client = client_of(reply)
        if client in admitted:
            continue
        try:
            if asked is not None:
                _refuse_other(reply, asked.get(client))
            if reply.has_error():
                raise ProtocolError(reply.error.reason or "the client failed and gave no reason")
            admitted[client] = _checked(reply, client, parameters, buffers)
        except ProtocolError as problem:
            refused.setdefault(client, legible(str(problem)))
    out = [Dropout(client, reason) for client, reason in refused.items() if client not in admitted]
    return list(admitted.values()), out


def _refuse_other(reply: Message, request: Message | None) -> None:
    """A reply belongs to one request. What an earlier round left behind, or a stranger sends, is no part of a round."""
    if request is None or reply.metadata.src_node_id != request.metadata.dst_node_id:
        raise ProtocolError("was not asked in this round")
    for what in ("group_id", "message_type"):
        mine, its = getattr(request.metadata, what), getattr(reply.metadata, what)
        if mine != its:
            raise ProtocolError(f"answers another request than this round's: its {what} is '{its}', not '{mine}'")


def as_weights(reply: Admitted, parameters: Mapping[str, Tensor], rate: float, *, double: bool) -> Message:
    """The reply as Flower's strategies want it: weights = broadcast - rate * update, and one record of numbers."""
    start, moved = list(parameters.values()), [reply.update[name] for name in parameters]
    if double:
        start, moved = [value.double() for value in start], [value.double() for value in moved]
    weights = torch._foreach_add(start, moved, alpha=-rate)
    reply.message.content = RecordDict(
        {
            protocol.ARRAYS: flower.to_record(dict(zip(parameters, weights, strict=True))),
            # Flower averages what all of a round's records hold, and not every client tells its loss.
            protocol.METRICS: MetricRecord({protocol.NUM_EXAMPLES: reply.examples}),
        }
    )
    return reply.message


def _checked(
    reply: Message, client: int, parameters: Mapping[str, Tensor], buffers: Mapping[str, tuple[int, ...]]
) -> Admitted:
    content = reply.content
    update = read_tensors(content, protocol.UPDATE, {name: tuple(value.shape) for name, value in parameters.items()})
    statistics = read_tensors(content, protocol.BUFFERS, buffers) if buffers else {}
    metrics = content.get(protocol.METRICS)
    if not isinstance(metrics, MetricRecord):
        raise ProtocolError(f"the record '{protocol.METRICS}' is missing")
    numbers = _numbers(metrics, (protocol.NUM_EXAMPLES, protocol.NUM_STEPS))
    loss, spent = _said(numbers)
    if numbers[protocol.NUM_EXAMPLES] < 1 or numbers[protocol.NUM_STEPS] < 1:
        raise ProtocolError(f"{protocol.METRICS}: the client says that it trained on nothing")
    return Admitted(
        client,
        reply,
        update,
        statistics,
        int(numbers[protocol.NUM_EXAMPLES]),
        int(numbers[protocol.NUM_STEPS]),
        loss,
        spent,
    )


def told(reply: Message, metrics: Collection[str]) -> tuple[float | None, Spent | None]:
    """The loss, and the cost of privacy, that a client tells beside a sealed update; None for what it keeps to itself.

    metrics: what the experiment asks for. Raises ProtocolError for more than that, and for what is no number.
    """
    record = reply.content.get(protocol.METRICS)
    if record is None:
        return None, None
    if not isinstance(record, MetricRecord):
        raise ProtocolError(f"the record '{protocol.METRICS}' holds no numbers")
    asked = {key for one in metrics for key in protocol.CLEAR[one]}
    if not set(record) <= asked:
        raise ProtocolError(f"{protocol.METRICS}/{min(set(record) - asked)} was not asked for")
    return _said(_numbers(record, ()))


def _numbers(metrics: MetricRecord, required: Collection[str]) -> dict[str, int | float]:
    numbers: dict[str, int | float] = {}
    for key in (*required, protocol.TRAIN_LOSS, protocol.EPSILON, protocol.DELTA):
        value = metrics.get(key)
        if value is None and key not in required:
            continue
        if not isinstance(value, int | float) or (isinstance(value, int) and abs(value) >= MOST):
            raise ProtocolError(f"{protocol.METRICS}/{key} is not a number, or too large a one")
        if key in required and not (abs(value) < MOST and value == int(value)):
            raise ProtocolError(f"{protocol.METRICS}/{key} is {value}, and counts nothing")
        if key == protocol.TRAIN_LOSS and not math.isfinite(value):
            raise ProtocolError(f"{protocol.METRICS}/{key} is {value}")
        numbers[key] = value
    return numbers


def _said(numbers: Mapping[str, int | float]) -> tuple[float | None, Spent | None]:
    loss, epsilon, delta = (numbers.get(key) for key in (protocol.TRAIN_LOSS, protocol.EPSILON, protocol.DELTA))
    if (epsilon is None) != (delta is None):
        raise ProtocolError(
            f"{protocol.METRICS}: {protocol.EPSILON} and {protocol.DELTA} say nothing without each other"
        )
    if epsilon is not None and delta is not None and not (epsilon >= 0 and 0 < delta < 1):
        raise ProtocolError(f"{protocol.METRICS}: no cost of privacy has epsilon {epsilon} at delta {delta}")
    return (
        None if loss is None else float(loss),
        None if epsilon is None or delta is None else (float(epsilon), float(delta)),
    )
