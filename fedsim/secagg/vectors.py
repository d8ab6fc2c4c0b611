"""Vectors of the ring on their way: as the record that a client sends, and added up as they arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

import fedsim.grids.flower_internals as flower
from fedsim.errors import ProtocolError
from fedsim.secagg.base import SEALED
from fedsim.secagg.quantization import Codec

VECTOR = "vector"
"""The one entry of the record SEALED, one-dimensional: int32 or int64, the ring's elements as signed numbers."""

LONG = 1 << 20
"""Entries from which on it pays to spread the work on a vector over threads."""

Addition = Callable[[NDArray[np.unsignedinteger]], None]
"""Adds something to a vector, in place, whatever is in it."""


def sealed(vector: NDArray[np.unsignedinteger]) -> RecordDict:
    """A ring vector, uint32 or uint64 (size,), as the content of a train reply. Shared, not copied: leave it alone
    afterwards.
    """
    signed = vector.view(np.int32 if vector.dtype == np.uint32 else np.int64)
    return RecordDict({SEALED: flower.to_record({VECTOR: torch.from_numpy(signed)})})


class RingSum:
    """The sum, modulo 2^bits, of one vector of each client: one vector of memory however many arrive.

    expected: the clients that may send one.
    """

    def __init__(self, codec: Codec, expected: Iterable[int]) -> None:
        self._codec = codec
        self._expected = frozenset(expected)
        self._arrived: set[int] = set()
        self._closed = False
        self.value: NDArray[np.unsignedinteger] = np.zeros(codec.size, codec.dtype)
        """(size,), changed in place."""

    def add(self, client: int, content: RecordDict) -> None:
        """Add what a client sent. Raises ProtocolError, and leaves the sum as it was, for what is no vector of this
        round, for a client that owes none, for a second one of the same client, and for one that comes too late.
        """
        if self._closed:
            raise ProtocolError(f"the vector of client {client} came after the sum was closed")
        if client not in self._expected:
            raise ProtocolError(f"client {client} was not to send a vector in this round")
        if client in self._arrived:
            raise ProtocolError(f"client {client} sent a second vector in the same round")
        vector = self._vector(content)
        np.add(self.value, vector, out=self.value)  # unsigned integers of NumPy wrap, as the ring does
        self._arrived.add(client)

    def apply(self, additions: Sequence[Addition]) -> None:
        """Make additions to the sum, in as many threads as torch has where the vector is long.

        Every thread but this one adds to a vector of zeros, which is added to the sum in the end: the same bits, as
        addition modulo 2^bits knows no order. Keystreams and additions of NumPy let other threads run.
        """
        threads = min(torch.get_num_threads() if self._codec.size >= LONG else 1, max(len(additions), 1))
        parts = [additions[start::threads] for start in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            others = [pool.submit(self._added, part) for part in parts[1:]]
            for addition in parts[0]:
                addition(self.value)
        for other in others:
            np.add(self.value, other.result(), out=self.value)

    def _added(self, additions: Iterable[Addition]) -> NDArray[np.unsignedinteger]:
        vector = np.zeros_like(self.value)
        for addition in additions:
            addition(vector)
        return vector

    def close(self) -> tuple[int, ...]:
        """Whose vectors are in it, in order; from now on none is added."""
        self._closed = True
        return tuple(sorted(self._arrived))

    def _vector(self, content: RecordDict) -> NDArray[np.unsignedinteger]:
        held = content.get(SEALED)
        if not isinstance(held, ArrayRecord):
            raise ProtocolError(f"the record '{SEALED}' is missing")
        for name in held:
            if name != VECTOR:
                raise ProtocolError(f"{SEALED}/{name} is not a name that a sealed update has")
        if VECTOR not in held:
            raise ProtocolError(f"{SEALED}/{VECTOR} is missing")
        try:
            value = flower.as_tensor(held[VECTOR])
        except ValueError as error:
            raise ProtocolError(f"{SEALED}/{VECTOR} cannot be read as an array: {error}") from None
        wanted = torch.int32 if self._codec.bits == 32 else torch.int64
        if value.dtype != wanted:
            raise ProtocolError(f"{SEALED}/{VECTOR} has type {value.dtype}, not {wanted}")
        if tuple(value.shape) != (self._codec.size,):
            raise ProtocolError(f"{SEALED}/{VECTOR} has shape {tuple(value.shape)}, not {(self._codec.size,)}")
        out: NDArray[np.unsignedinteger] = value.detach().cpu().numpy().view(self._codec.dtype)
        return out
