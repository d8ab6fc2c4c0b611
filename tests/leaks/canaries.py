"""Bytes that stand for a secret, and a search for all of them at once. No test is in here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

LENGTH = 16
"""Bytes of a canary, at least (but for those of a seed, which has 8)."""

_KEY = 8


@dataclass(frozen=True)
class Canary:
    """kind: what it stands for. client, round: whose and when; -1 for what is nobody's, or of no round. peer: the other
    client of what goes from one to another. form: how it is written.
    """

    kind: str
    client: int
    round: int
    data: bytes = field(repr=False)
    form: str = ""
    peer: int = -1


def numbers(
    kind: str, client: int, round_: int, value: Tensor, *, peer: int = -1, most: int = 2, width: int = 4
) -> list[Canary]:
    """Canaries of a tensor: at most so many places where, of `width` neighbours, four are different and not zero, so
    that they are found nowhere by chance; in both floating-point types, or as the integers that they are. Nothing of a
    tensor that has no such place.
    """
    flat = value.detach().cpu().reshape(-1).contiguous()
    if len(flat) < width:
        return []
    rows = flat.unfold(0, width, 1 if width == 4 else width)
    ordered = rows.double().sort(dim=1).values
    new = torch.cat([torch.ones(len(rows), 1, dtype=torch.bool), ordered.diff(dim=1) != 0], 1)
    places = (((ordered != 0) & new).sum(1) >= 4).nonzero().flatten()
    if not len(places):
        return []
    chosen = {int(places[int(at)]) for at in torch.linspace(0, len(places) - 1, most)}
    out = []
    for place in sorted(chosen):
        window = rows[place]
        types = (torch.float32, torch.float64) if window.is_floating_point() else (window.dtype,)
        out += [Canary(kind, client, round_, _bytes(window.to(one)), str(one), peer) for one in types]
    return out


def sequence(kind: str, client: int, round_: int, values: Tensor) -> list[Canary]:
    """Canaries of whole numbers that are told by their order: as every integer type, as a float, and as JSON."""
    flat = values.detach().cpu().reshape(-1)
    types = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.float32)
    out = [Canary(kind, client, round_, _bytes(flat.to(one)), str(one)) for one in types]
    return [*out, Canary(kind, client, round_, ", ".join(map(str, flat.tolist())).encode(), "json")]


def secret(kind: str, client: int, round_: int, data: bytes, *, peer: int = -1) -> list[Canary]:
    """Canaries of bytes: the last ones, as they are and in hexadecimal."""
    tail = bytes(data[-LENGTH:])
    forms = ((tail, "bytes"), (tail.hex().encode(), "hex"))
    return [Canary(kind, client, round_, one, form, peer) for one, form in forms]


def words(kind: str, client: int, text: str) -> Canary:
    """A canary in JSON."""
    return Canary(kind, client, -1, text.encode(), "text")


def _bytes(values: Tensor) -> bytes:
    out: bytes = values.contiguous().numpy().tobytes()
    return out


class Search:
    """Looks for all canaries at once: a table of two bytes, then eight of them, then all."""

    def __init__(self, canaries: Iterable[Canary]) -> None:
        self._by_key: dict[int, list[tuple[int, Canary]]] = {}
        for canary in canaries:
            at = _telling(canary.data)
            key = int.from_bytes(canary.data[at : at + _KEY], "little")
            self._by_key.setdefault(key, []).append((at, canary))
        self._keys = np.array(sorted(self._by_key), dtype="<u8")
        self._starts = np.zeros(1 << 16, bool)
        self._starts[(self._keys & np.uint64(0xFFFF)).astype(np.int64)] = True
        self.scanned = 0
        """Bytes, in all."""

    def __call__(self, data: bytes | memoryview) -> set[Canary]:
        """The canaries that stand anywhere in the bytes."""
        self.scanned += len(data)
        found: set[Canary] = set()
        whole = np.frombuffer(data, np.uint8)
        if len(whole) < _KEY:
            return found
        for odd in (0, 1):
            pairs = whole[odd : odd + (len(whole) - odd) // 2 * 2].view("<u2")
            places = np.flatnonzero(self._starts[pairs]) * 2 + odd
            places = places[places <= len(whole) - _KEY]
            for part in np.array_split(places, len(places) // (1 << 20) + 1):
                keys = whole[part[:, None] + np.arange(_KEY)].view("<u8").reshape(-1)
                near = self._keys[np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)]
                for place, key in zip(part[hits := near == keys], keys[hits], strict=True):
                    for at, canary in self._by_key[int(key)]:
                        start = int(place) - at
                        if start >= 0 and bytes(data[start : start + len(canary.data)]) == canary.data:
                            found.add(canary)
        return found


def _telling(data: bytes) -> int:
    """Where the eight bytes begin of which the most differ; they begin with none that is everywhere, if it can be."""
    dull = {0, 255}
    return max(
        range(len(data) - _KEY + 1),
        key=lambda at: (data[at] not in dull) + (data[at + 1] not in dull) + len(set(data[at : at + _KEY])) / 16,
    )


def reachable(thing: Any) -> Iterator[bytes]:
    """All bytes of something that was handed over, and all that can be reached from it: whole memories of tensors, of
    which these may be parts, and whatever hangs on them.

    Raises AssertionError for an object of a type that no adversary is given: what hangs on it is anybody's guess.
    """
    seen: set[int] = set()
    waiting = [thing]
    while waiting:
        one = waiting.pop()
        if id(one) in seen and not isinstance(one, int | float):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            assert one.grad_fn is None, "a tensor hangs on what it was made of"
            memory = one.untyped_storage()
            yield bytes(torch.empty(0, dtype=torch.uint8).set_(memory).numpy())
            waiting += [one._base, one.grad if one.is_leaf else None, dict(vars(one))]
        elif isinstance(one, torch.nn.Module):
            waiting += [*one.parameters(), *one.buffers(), *(p.grad for p in one.parameters() if p.grad is not None)]
        elif isinstance(one, bytes | bytearray | memoryview):
            yield bytes(one)
        elif isinstance(one, str):
            yield one.encode()
        elif isinstance(one, Mapping):
            assert isinstance(one, dict | MappingProxyType) or is_dataclass(one), type(one)
            yield from _json(one)
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            yield from _json(one)
            waiting += one
        elif is_dataclass(one):
            assert set(vars(one)) == {each.name for each in fields(one)}, "something was hung on it"
            waiting.append(dict(vars(one)))
        elif one is None or isinstance(one, int | float):
            yield json.dumps(one).encode()
        else:
            raise AssertionError(f"a {type(one)} was handed over")


def _json(thing: Any) -> Iterator[bytes]:
    """Facts as they are written down, so that words with their keys are found."""
    with suppress(TypeError, ValueError):  # it holds tensors, which are looked at one by one
        yield json.dumps(dict(thing) if isinstance(thing, Mapping) else list(thing), sort_keys=True).encode()
