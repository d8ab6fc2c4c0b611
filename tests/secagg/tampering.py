"""Messages changed at random: one entry of a record, or the form of a vector. No test is in here."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

import fedsim.grids.flower_internals as flower
from fedsim.secagg.base import SEALED
from fedsim.secagg.keys import new_pair
from fedsim.secagg.vectors import VECTOR

STRANGE, HUGE = 999, 2**63 - 1
"""Ids of nobody: one among the others, and the largest number that a message can carry."""

STRAY = (
    "encrypted/03",
    "encrypted/-1",
    "encrypted/²",
    "encrypted/",
    f"encrypted/{10**30}",
    "opened/self/x",
    "opened/key/7",
)
"""Keys that no message of an honest sender has, or has with other bytes behind them."""

NPY = b"\x93NUMPY\x01\x00"
"""How an array of NumPy begins on the wire."""


def copied(record: ConfigRecord) -> ConfigRecord:
    """The same once more, lists too: what one side changes the other does not see."""
    return ConfigRecord({key: list(value) if isinstance(value, list) else value for key, value in record.items()})


def spoiled(record: ConfigRecord, rng: random.Random, ids: Sequence[int]) -> tuple[ConfigRecord, str]:
    """A copy with one entry changed, and in which way."""
    out = copied(record)
    way = rng.random()
    if not out or way < 0.08:
        out[rng.choice(STRAY)] = rng.choice((bytes(94), bytes(33), b"", 7))
        return out, "stray entry"
    if way < 0.12:
        return ConfigRecord(), "emptied"
    key = rng.choice(sorted(out))
    if way < 0.18:
        del out[key]
        return out, "entry missing"
    if way < 0.26:
        out[key] = rng.choice((True, 1.5, "3", b"3", [True], ["3"], [0.5], []))  # type: ignore[arg-type]
        return out, "wrong type"
    if isinstance(out.get("survivors"), list) and isinstance(out.get("dropped"), list) and way < 0.55:
        return out, _lied(out, rng)
    value = out[key]
    if isinstance(value, bytes):
        out[key], told = _bytes(value, rng)
    elif isinstance(value, int):
        out[key], told = rng.choice((value - 1, value + 1, 0, -value, HUGE, -HUGE - 1)), "number"
    elif isinstance(value, list):
        out[key], told = _list(value, rng, ids)
    else:
        out[key], told = 0, "wrong type"
    return out, told


def _lied(record: ConfigRecord, rng: random.Random) -> str:
    """Other claims about who survived."""
    alive, dead = list(record["survivors"]), list(record["dropped"])  # type: ignore[arg-type]
    way = rng.choice(("living called dead", "living called dead", "in both lists", "dead called living"))
    source, sink = (dead, alive) if way == "dead called living" else (alive, dead)
    if source:
        moved = rng.choice(source)
        sink.append(moved)
        if way != "in both lists":
            source.remove(moved)
    record["survivors"], record["dropped"] = alive, dead
    return way


def _bytes(value: bytes, rng: random.Random) -> tuple[bytes, str]:
    way = rng.choice(("bit", "bit", "cut", "longer", "empty", "zeros", "all ones"))
    if way == "bit" and value:
        changed = bytearray(value)
        changed[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
        return bytes(changed), "bit flipped"
    other = {"cut": value[:-1], "longer": value + b"\0", "zeros": bytes(len(value)), "all ones": b"\xff" * len(value)}
    return other.get(way, b""), f"bytes {way}"


def _list(value: list, rng: random.Random, ids: Sequence[int]) -> tuple[list, str]:
    place = rng.randrange(len(value)) if value else 0
    if any(type(one) not in (bytes, int) for one in value):  # changed before
        return [], "ids none left"
    if value and isinstance(value[0], bytes):
        other = rng.choice((new_pair().public, bytes(32), b"\1" + bytes(31), rng.choice(value), value[place][:-1]))
        return [*value[:place], other, *value[place + 1 :]], "key exchanged"
    way = rng.choice(("removed", "doubled", "stranger", "negative", "huge", "other order", "renamed", "none left"))
    changed = {
        "removed": [*value[:place], *value[place + 1 :]],
        "doubled": [*value, *value[:1]],
        "stranger": [*value, STRANGE],
        "negative": [*value, -1],
        "huge": [*value, HUGE],
        "other order": rng.sample(value, len(value)),
        "renamed": [*value[:place], rng.choice(ids), *value[place + 1 :]],
    }
    return changed.get(way, []), f"ids {way}"


def misshapen(content: RecordDict, rng: random.Random) -> tuple[RecordDict, str]:
    """A sealed vector as something that it cannot be: the numbers in it may be the same, the form is not."""
    vector: torch.Tensor = content[SEALED][VECTOR].tensor  # type: ignore[index,union-attr]
    other = torch.int64 if vector.dtype == torch.int32 else torch.int32
    tensors = {
        "shape": {VECTOR: vector.reshape(-1, 1)},
        "shorter": {VECTOR: vector[:-1]},
        "longer": {VECTOR: torch.cat([vector, vector[:1]])},
        "none": {VECTOR: vector[:0]},
        "scalar": {VECTOR: vector[0]},
        "other integers": {VECTOR: vector.to(other)},
        "floats": {VECTOR: vector.to(torch.float32)},
        "complex": {VECTOR: vector.to(torch.complex64)},
        "other name": {"vectors": vector},
        "one more": {VECTOR: vector, "vector2": vector},
        "empty record": {},
    }
    # Bytes in which NumPy must not find an array of the right form, or anything that it cannot turn down.
    raw = {
        "junk": b"junk",
        "no bytes": b"",
        "cut": content[SEALED][VECTOR].data[:-1],  # type: ignore[index,union-attr]
        "pickle": NPY + _header("{'descr': '|O', 'fortran_order': False, 'shape': (45,), }"),
        "negative shape": NPY + _header("{'descr': '<i4', 'fortran_order': False, 'shape': (-5,), }"),
    }
    way = rng.choice((*tensors, *raw, "no record", "another record"))
    if way in tensors:
        return RecordDict({SEALED: flower.to_record(tensors[way])}), f"vector {way}"
    if way in raw:
        return raw_vector(raw[way], len(vector)), f"vector {way}"
    return RecordDict({SEALED: ConfigRecord({VECTOR: 1})} if way == "another record" else {}), f"vector {way}"


def raw_vector(data: bytes, size: int) -> RecordDict:
    """A sealed vector as bytes from the wire."""
    array = Array(dtype="int32", shape=(size,), stype="numpy.ndarray", data=data)
    return RecordDict({SEALED: ArrayRecord({VECTOR: array})})


def _header(text: str) -> bytes:
    line = text.encode() + b" " * (63 - (10 + len(text)) % 64) + b"\n"
    return len(line).to_bytes(2, "little") + line
