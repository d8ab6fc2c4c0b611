"""Messages of a federation, changed at random in one way each. No test is in here.

What nobody can be caught at is left out: other finite numbers in the place of the right ones. A link that is open to
that is closed by TLS, and a client may say what it likes of its own update.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

import fedsim.grids.flower_internals as flower
from fedsim import protocol

JUNK = (b"", b"junk", b"\x93NUMPY\x01\x00", b"PK\x03\x04" + bytes(60), b"\x80\x04N.", bytes(300), b"[1, 2, 3]")
WORDS = ("", "weight", "fc.weight ", "../x", "\x00", "x" * 3000, "日本", "conv1", "__class__", "update", "norm1.weight")
NUMBERS: tuple[Any, ...] = (
    *(float("nan"), float("inf"), float("-inf"), -1, 0, -(2**70), 2**63, 10**400, 0.5, 1e300, -2.5, [], [2], [0.5]),
)

Change = Callable[[RecordDict, random.Random], None]


def _arrays(content: RecordDict, rng: random.Random) -> ArrayRecord:
    """A record of arrays, or a new one in the place of what is none any longer."""
    held = [record for record in content.values() if isinstance(record, ArrayRecord) and len(record)]
    return rng.choice(held) if held else ArrayRecord({"w": Array(np.ones(2, np.float32))})


def _array(content: RecordDict, rng: random.Random) -> tuple[ArrayRecord, str, torch.Tensor]:
    record = _arrays(content, rng)
    name = rng.choice(sorted(record))
    return record, name, flower.as_tensor(record[name]).clone()


def record_missing(content: RecordDict, rng: random.Random) -> None:
    del content[rng.choice(sorted(content))]


def record_of_another_type(content: RecordDict, rng: random.Random) -> None:
    other = (ArrayRecord(), MetricRecord(), ConfigRecord(), MetricRecord({"x": 1}), ConfigRecord({"x": b"1"}))
    key = rng.choice(sorted(content))
    _put(content, key, rng.choice([one for one in other if type(one) is not type(content[key])]))


def record_renamed(content: RecordDict, rng: random.Random) -> None:
    key = rng.choice(sorted(content))
    _put(content, rng.choice([word for word in WORDS if word not in content]), content.pop(key))


def records_swapped(content: RecordDict, rng: random.Random) -> None:
    if len(content) > 1:
        one, other = rng.sample(sorted(content), 2)
        first, second = content[one], content[other]
        _put(content, one, second)
        _put(content, other, first)


def record_more(content: RecordDict, rng: random.Random) -> None:
    """Harmless: nobody looks for it."""
    content["more"] = rng.choice((ArrayRecord(), MetricRecord({"x": float("nan")}), ConfigRecord({"x": "y" * 5000})))


def record_empty(content: RecordDict, rng: random.Random) -> None:
    _put(content, rng.choice(sorted(content)), rng.choice((ArrayRecord(), MetricRecord(), ConfigRecord())))


def all_empty(content: RecordDict, rng: random.Random) -> None:
    for key in list(content):
        del content[key]


def entry_missing(content: RecordDict, rng: random.Random) -> None:
    record, name, _ = _array(content, rng)
    del record[name]


def entry_more(content: RecordDict, rng: random.Random) -> None:
    record, _, tensor = _array(content, rng)
    record[rng.choice([word for word in WORDS if word not in record])] = flower.to_record({"x": tensor})["x"]


def entry_renamed(content: RecordDict, rng: random.Random) -> None:
    record, name, _ = _array(content, rng)
    record[rng.choice([word for word in WORDS if word not in record])] = record.pop(name)


def wrong_type(content: RecordDict, rng: random.Random) -> None:
    record, name, tensor = _array(content, rng)
    other = (torch.float64, torch.float16, torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64)
    record[name] = Array(tensor.to(rng.choice(other)).numpy())


def wrong_shape(content: RecordDict, rng: random.Random) -> None:
    record, name, tensor = _array(content, rng)
    flat = tensor.reshape(-1)
    ways = (flat[:-1], torch.cat([flat, flat]), tensor.unsqueeze(0), tensor.unsqueeze(-1), flat[:0], flat[0])
    record[name] = rng.choice((flower.to_record, _as_bytes))({name: rng.choice(ways).contiguous()})[name]


def no_number(content: RecordDict, rng: random.Random) -> None:
    """NaN, an infinity or 1e38 in one place, in some, or in all of an array."""
    record, name, tensor = _array(content, rng)
    if not tensor.is_floating_point():  # a sealed vector has no such thing
        tensor = tensor.float()
    flat = tensor.reshape(-1)
    places = rng.sample(range(len(flat)), rng.choice((1, 1, min(3, len(flat)), len(flat)))) if len(flat) else []
    for place in places:
        flat[place] = rng.choice((float("nan"), float("inf"), float("-inf"), 1e38, -3e38, 1e19))
    record[name] = rng.choice((flower.to_record, _as_bytes))({name: tensor})[name]


def bytes_cut(content: RecordDict, rng: random.Random) -> None:
    record, name, tensor = _array(content, rng)
    whole = Array(tensor.numpy())
    record[name] = _raw(whole, whole.data[: rng.randrange(len(whole.data))])


def bytes_flipped(content: RecordDict, rng: random.Random) -> None:
    """In the head, which says what the numbers behind it are."""
    record, name, tensor = _array(content, rng)
    whole = Array(tensor.numpy())
    data = bytearray(whole.data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(100)] ^= 1 << rng.randrange(8)
    record[name] = _raw(whole, bytes(data))


def bytes_of_something_else(content: RecordDict, rng: random.Random) -> None:
    record, name, tensor = _array(content, rng)
    whole = Array(tensor.numpy())
    kind = rng.choice(("numpy.ndarray", "numpy.ndarray", "pickle", "torch.Tensor", ""))
    record[name] = Array(whole.dtype, whole.shape, kind, rng.choice(JUNK))


def number_that_is_none(content: RecordDict, rng: random.Random) -> None:
    held = [one for one in content.values() if isinstance(one, MetricRecord)]
    if held:
        keys = (protocol.NUM_EXAMPLES, protocol.NUM_STEPS, protocol.TRAIN_LOSS)
        key = rng.choice(keys)
        odd = [one for one in NUMBERS if key != protocol.TRAIN_LOSS or not _is_loss(one)]
        held[0][key] = rng.choice(odd)


def number_missing(content: RecordDict, rng: random.Random) -> None:
    held = [one for one in content.values() if isinstance(one, MetricRecord)]
    if held:
        held[0].pop(rng.choice((protocol.NUM_EXAMPLES, protocol.NUM_STEPS)), None)


def number_more(content: RecordDict, rng: random.Random) -> None:
    """Half of the cost of privacy, or one that is none."""
    held = [one for one in content.values() if isinstance(one, MetricRecord)]
    if held:
        for key in rng.choice(((protocol.EPSILON,), (protocol.DELTA,), (protocol.EPSILON, protocol.DELTA))):
            held[0][key] = rng.choice((-1, float("nan"), 10**400, [1], 3.0))


def entry_of_another_type(content: RecordDict, rng: random.Random) -> None:
    """In a record of settings: the round, and what goes along under secure aggregation."""
    held = [one for one in content.values() if isinstance(one, ConfigRecord) and len(one)]
    if held:
        record = rng.choice(held)
        record[rng.choice(sorted(record))] = rng.choice(("x", "", b"2", [1], [], ["2"], float("nan"), 2.5, [True]))


def entry_of_settings_missing(content: RecordDict, rng: random.Random) -> None:
    held = [one for one in content.values() if isinstance(one, ConfigRecord) and len(one)]
    if held:
        record = rng.choice(held)
        del record[rng.choice(sorted(record))]


OF_ARRAYS: dict[str, Change] = {
    "entry missing": entry_missing,
    "entry more": entry_more,
    "entry renamed": entry_renamed,
    "wrong type": wrong_type,
    "wrong shape": wrong_shape,
    "NaN, Inf, 1e38": no_number,
    "bytes cut off": bytes_cut,
    "bytes flipped": bytes_flipped,
    "other bytes": bytes_of_something_else,
}
OF_RECORDS: dict[str, Change] = {
    "record missing": record_missing,
    "record of another type": record_of_another_type,
    "record renamed": record_renamed,
    "records swapped": records_swapped,
    "record more": record_more,
    "record empty": record_empty,
    "all empty": all_empty,
}
OF_NUMBERS: dict[str, Change] = {
    "number that is none": number_that_is_none,
    "number missing": number_missing,
    "number more": number_more,
}
OF_SETTINGS: dict[str, Change] = {
    "setting of another type": entry_of_another_type,
    "setting missing": entry_of_settings_missing,
}


def changed(content: RecordDict, ways: Sequence[dict[str, Change]], rng: random.Random) -> str:
    """Change a content that is nobody else's in one way, and say in which."""
    known = {name: change for group in ways for name, change in group.items()}
    kind = rng.choice(sorted(known))
    if content:
        known[kind](content, rng)
    return kind


def with_metadata(message: Message, **values: Any) -> Message:
    """Other words on the envelope. Flower checks some of them when a message is made; a sender need not."""
    for key, value in values.items():
        message.metadata.__dict__[f"_{key}"] = value
    return message


def _put(content: RecordDict, key: str, record: Any) -> None:
    content.pop(key, None)  # Flower says much when a record takes the place of one of another type
    content[key] = record


def _is_loss(value: Any) -> bool:
    """A loss may be any finite number; the model does not depend on it."""
    return isinstance(value, int | float) and abs(value) < 2**63


def _as_bytes(tensors: dict[str, torch.Tensor]) -> ArrayRecord:
    """As they come over a network."""
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in tensors.items()})


def _raw(whole: Array, data: bytes) -> Array:
    return Array(whole.dtype, whole.shape, whole.stype, data)
