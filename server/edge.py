"""The edge of the server: replies are admitted or refused, and updates become the weights that a strategy sees."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

import fedsim.grids.flower_internals as flower
from fedsim import protocol
from fedsim.errors import ProtocolError
from fedsim.grids.watched import client_of
from fedsim.runs import Dropout

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
    replies: Iterable[Message], parameters: Mapping[str, Tensor], buffers: Mapping[str, tuple[int, ...]]
) -> tuple[list[Admitted], list[Dropout]]:
    """The usable replies in the order of the clients, and the others as dropouts with their reasons.

    parameters: the broadcast model, for names and shapes. buffers: the names and shapes of the statistics that the
    BatchNorm policy has every client send.
    """
    admitted, dropouts = [], []
    for reply in sorted(replies, key=client_of):
        client = client_of(reply)
        try:
            if reply.has_error():
                raise ProtocolError(reply.error.reason or "the client failed and gave no reason")
            admitted.append(_checked(reply, client, parameters, buffers))
        except ProtocolError as problem:
            dropouts.append(Dropout(client, str(problem)))
    return admitted, dropouts


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
    update = _tensors(content, protocol.UPDATE, {name: tuple(value.shape) for name, value in parameters.items()})
    statistics = _tensors(content, protocol.BUFFERS, buffers) if buffers else {}
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
        if not isinstance(value, int | float):
            raise ProtocolError(f"{protocol.METRICS}/{key} is not a number")
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


def _tensors(content: RecordDict, record: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    held = content.get(record)
    if not isinstance(held, ArrayRecord):
        raise ProtocolError(f"the record '{record}' is missing")
    for name in held:
        if name not in shapes:
            raise ProtocolError(f"{record}/{name} is not a name that the model has")
    out: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name not in held:
            raise ProtocolError(f"{record}/{name} is missing")
        try:
            value = flower.as_tensor(held[name])
        except ValueError as error:
            raise ProtocolError(f"{record}/{name} cannot be read as an array: {error}") from None
        if tuple(value.shape) != shape:
            raise ProtocolError(f"{record}/{name} has shape {tuple(value.shape)}, not {shape}")
        if not value.is_floating_point():
            raise ProtocolError(f"{record}/{name} has type {value.dtype}, not a float")
        out[name] = value
    _refuse_non_finite(record, out)
    return out


def _refuse_non_finite(record: str, tensors: Mapping[str, Tensor]) -> None:
    # One sum over everything: it is finite unless some entry is not (or it overflows, and then the slow look decides).
    if tensors and not torch.isfinite(torch.stack([value.sum() for value in tensors.values()]).sum()):
        for name, value in tensors.items():
            if not torch.isfinite(value).all():
                what = "NaN" if value.isnan().any() else "Inf"
                raise ProtocolError(f"{record}/{name} holds {what}")
