"""Who does the pieces of a sweep: worker processes of this machine here, tasks of a Ray cluster in `fedsim.cluster`.

The processes outlive one another: one that is killed takes its own piece of work with it and nothing else. Each is a
fresh process with a pipe, and does one piece after another, so that it imports torch once.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Protocol

from fedsim.errors import FedsimError
from fedsim.interrupts import deaf_to_interrupts

Tell = Callable[..., None]
"""Sends a message to whoever started the work: a word, then what it is about."""

Work = Callable[[Any, Tell], Any]
"""What a worker does with a piece. A function of a module, so that another process can find it by name."""

PATIENCE = 10.0
"""Seconds that a worker gets to end by itself."""

TERMINATED = 143


@dataclass(frozen=True)
class Message:
    """From a worker: about which piece, and what.

    word: "done" with its result, "failed" with what went wrong, or whatever the work tells.
    """

    piece: str
    word: str
    facts: tuple[Any, ...] = ()


class Pool(Protocol):
    """Does pieces of work, several at once."""

    @property
    def free(self) -> int:
        """How many more pieces could be started now."""
        ...

    @property
    def busy(self) -> int:
        """How many pieces are being worked on."""
        ...

    def start(self, piece: str, content: Any) -> None:
        """Have a piece of work done, which goes by a name; there must be room for it."""
        ...

    def messages(self, seconds: float) -> Iterator[Message]:
        """What has been said of the pieces, after waiting for at most so long."""
        ...

    def stop(self) -> None:
        """End all work, and leave nothing running."""
        ...


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    pipe: Connection
    piece: str | None = None


@dataclass
class ProcessPool:
    """At most `jobs` workers, started when there is work for them."""

    work: Work
    jobs: int
    _workers: list[_Worker] = field(default_factory=list)

    @property
    def free(self) -> int:
        """How many more pieces could be started now."""
        return self.jobs - self.busy

    @property
    def busy(self) -> int:
        """How many pieces are being worked on."""
        return sum(worker.piece is not None for worker in self._workers)

    def start(self, piece: str, content: Any) -> None:
        """Give a piece of work to a worker; there must be one free."""
        idle = [worker for worker in self._workers if worker.piece is None]
        for worker in [*idle, None]:
            worker = worker or self._hire()
            try:
                worker.pipe.send((piece, content))
            except OSError:  # it was killed while it had nothing to do
                self._dismiss(worker)
                continue
            worker.piece = piece
            return
        raise RuntimeError("a worker process that was just started is not there")

    def messages(self, seconds: float) -> Iterator[Message]:
        """What workers have said, after waiting for at most so long."""
        pipes = {worker.pipe: worker for worker in self._workers}
        for ready in wait(list(pipes), seconds):
            worker = pipes[ready]  # type: ignore[index]
            try:
                message = Message(*worker.pipe.recv())
            except (EOFError, OSError):
                piece = worker.piece
                reason = self._dismiss(worker)
                if piece is not None:
                    yield Message(piece, "failed", (reason,))
                continue
            if message.word in ("done", "failed"):
                worker.piece = None
            yield message

    def stop(self) -> None:
        """End all workers: those at work are asked to break off, and killed if they take too long over it."""
        for worker in self._workers:
            if worker.piece is not None:
                worker.process.terminate()
            worker.pipe.close()
        deadline = time.monotonic() + PATIENCE
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()

    def _hire(self) -> _Worker:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(theirs, self.work))
        with deaf_to_interrupts():
            process.start()
        theirs.close()  # or its end would not be noticed
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def _dismiss(self, worker: _Worker) -> str:
        """Forget a worker that has died, and say how it did."""
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join(PATIENCE)
        code = worker.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            likely = "; most likely the machine ran out of memory: try --jobs 1" if name == "SIGKILL" else ""
            return f"its process was ended by {name}{likely}"
        return f"its process ended by itself with code {code}"


def _serve(pipe: Connection, work: Work) -> None:
    """The life of a worker."""
    # Ctrl-C reaches the whole group of processes; it is for the parent to decide what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminated)
    while True:
        try:
            piece, content = pipe.recv()
        except (EOFError, OSError):
            return

        def tell(word: str, *facts: Any, piece: str = piece) -> None:
            try:
                pipe.send((piece, word, facts))
            except OSError:  # nobody is left who would want to know
                raise SystemExit(TERMINATED) from None

        try:
            answer = work(content, tell)
        except FedsimError as error:  # worded for people already
            tell("failed", str(error))
        except Exception as error:
            tell("failed", f"{type(error).__name__}: {error}")
        else:
            tell("done", answer)


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)
