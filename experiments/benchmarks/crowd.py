"""What the benchmark of secure aggregation plays with: the clients of a round, a server alone in a process, a clock."""

from __future__ import annotations

import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord
from numpy.typing import NDArray

from fedsim.clients.masking import PairwiseMasking
from fedsim.secagg import masks
from fedsim.secagg.base import SEALED, Contribution, Terms
from fedsim.secagg.plus import SecAggPlus
from fedsim.secagg.quantization import Codec
from fedsim.secagg.vectors import VECTOR, sealed
from fedsim.server import unmasking

EXAMPLES = 32
"""What a client weighs."""

MODEL = bytes(32)
"""What the clients were sent, as `fedsim.secagg.base.binding` has it."""

TRAIN, DONE = "train", "done"
"""What is said over the pipe besides the protocol's stages: a train request, and the end."""


class Clock:
    """CPU seconds by name. Time within a name inside another counts for both."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, name: str, now: Callable[[], float] = time.process_time) -> Iterator[None]:
        """now: which clock; that of all threads of the process unless it says otherwise."""
        start = now()
        yield
        self.seconds.setdefault(name, []).append(now() - start)

    def total(self, name: str) -> float:
        return math.fsum(self.seconds.get(name, ()))

    @contextmanager
    def on(self, owner: Any, *functions: str) -> Iterator[None]:
        """Every call of these functions of a module or class is measured under the function's name, each in the thread
        that it runs in.
        """
        before = {name: getattr(owner, name) for name in functions}

        def measured(name: str) -> Callable[..., Any]:
            def call(*values: Any, **named: Any) -> Any:
                with self(name, time.thread_time):
                    return before[name](*values, **named)

            return call

        for name in functions:
            setattr(owner, name, measured(name))
        try:
            yield
        finally:
            for name in functions:
                setattr(owner, name, before[name])


def timed(action: Callable[[], object]) -> float:
    """Process CPU seconds of one call."""
    start = time.process_time()
    action()
    return time.process_time() - start


def keystream_alone(size: int, seed: bytes) -> None:
    """The floor: the keystream of a mask, in the same blocks, added to nothing."""
    stream, buffer = masks._stream(seed), bytearray(masks.BLOCK)
    for start in range(0, size, masks.BLOCK):
        stream.update_into(memoryview(masks.ZEROS)[: min(masks.BLOCK, size - start)], buffer)


class Crowd:
    """Clients of one round, all with the same contribution. They answer a server's half, whoever drives it."""

    def __init__(self, settings: SecAggPlus, terms: Terms) -> None:
        rng = torch.Generator().manual_seed(0)
        update, running = (
            {name: 0.01 * torch.randn(shape, generator=rng) for name, shape in part.items()}
            for part in (terms.layout.update, terms.layout.statistics)
        )
        self.contribution = Contribution(update, running, EXAMPLES, 1)
        self.settings, self.terms = settings, terms
        self.memories = {client: ConfigRecord() for client in range(terms.clients)}
        self.clock = Clock()

    def answer(self, stage: str, client: int, query: ConfigRecord) -> ConfigRecord:
        half = PairwiseMasking(self.settings, self.terms, client, 1, self.memories[client])
        with self.clock(stage):
            reply = half.answer(stage, query)
        self.memories[client] = half.memory
        return reply

    def seal(self, client: int, along: ConfigRecord | None) -> NDArray[np.signedinteger]:
        """The masked vector, signed, (size,)."""
        half = PairwiseMasking(self.settings, self.terms, client, 1, self.memories[client])
        with self.clock(TRAIN):
            content = half.seal(self.contribution, along, MODEL)
        self.memories[client] = half.memory
        return content[SEALED][VECTOR].numpy()  # type: ignore[union-attr]

    def ask(self, stage: str, queries: Mapping[int, ConfigRecord]) -> Iterator[tuple[int, ConfigRecord]]:
        for client, query in queries.items():
            yield client, self.answer(stage, client, query)


def play_server(pipe: Connection, choice: Mapping[str, Any], terms: Terms, threads: int) -> None:
    """In a process of its own: one round of the server's half, with clients at the other end of the pipe."""
    torch.set_num_threads(threads)
    settings, clock = SecAggPlus(**choice), Clock()
    before = peak_bytes()

    def ask(stage: str, queries: Mapping[int, ConfigRecord]) -> Iterator[tuple[int, ConfigRecord]]:
        for client, query in queries.items():
            pipe.send((stage, client, query))
            yield client, pipe.recv()

    half = unmasking.PairwiseUnmasking(settings, terms, 1, range(terms.clients), MODEL)
    with clock("prepare"):
        along = half.prepare(ask)
    size, taken = settings.codec(terms).size, 0
    for client, record in along.items():
        pipe.send((TRAIN, client, record))
        if pipe.recv():
            vector = np.empty(size, np.uint32)
            pipe.recv_bytes_into(vector)
            with clock("take"):
                half.take(client, sealed(vector))
            taken += 1
    with (
        clock.on(unmasking, "add_self_mask", "add_pair_mask"),
        clock.on(Codec, "decode"),
        clock("wall", time.perf_counter),
        clock("open"),
    ):
        total = half.open(ask)
    peak = peak_bytes()
    parts = {
        "keys and shares": clock.total("prepare"),
        f"{taken} vectors summed": clock.total("take"),
        f"{len(clock.seconds['add_self_mask'])} self masks taken off": clock.total("add_self_mask"),
        f"{len(clock.seconds['add_pair_mask'])} masks of the dropped taken off": clock.total("add_pair_mask"),
        "decoded": clock.total("decode"),
    }
    within = clock.total("open") - sum(list(parts.values())[2:])
    parts["secrets asked for, restored and checked"] = within
    bare = Clock()
    seed, vector, other = os.urandom(masks.SEED), np.zeros(size, np.uint32), np.ones(size, np.uint32)
    for _ in range(7):
        with bare("mask"):
            keystream_alone(4 * size, seed)
            np.add(vector, other, out=vector)
        with bare("sum"):
            np.add(vector, other, out=vector)
    count = len(clock.seconds["add_self_mask"]) + len(clock.seconds["add_pair_mask"])
    least = count * statistics.median(bare.seconds["mask"]) + taken * statistics.median(bare.seconds["sum"])
    found = {"parts": parts, "apart_in_seconds": least, "masks": count, "peak": peak, "before": before}
    pipe.send((DONE, 0, {**found, "open": clock.total("open"), "wall_of_open": clock.total("wall")}))
    pipe.send(({name: value.numpy() for name, value in total.update.items()}, total.error))


def peak_bytes() -> int:
    """The largest resident memory of this process so far.

    Where there is one, by the kernel's count of the address space: getrusage also counts the process that started this
    one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if found:
            return int(found[0].split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
