"""The client workers of a run on a Ray cluster: who works on what, and what happens when one of them dies."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fedsim.cluster.connecting import Cluster, ray_module
from fedsim.cluster.sizing import Size
from fedsim.cluster.worker import ClientWorker
from fedsim.errors import FedsimError, InputError

AHEAD = 2
"""Chunks of messages that a worker has at a time: one that it works on, and one that lies ready."""
DEATHS = 3
"""How many workers may die over one message, and how many in a row before they ever began."""
CHUNK_SECONDS = 0.25
"""How long a chunk should take: far longer than sending it, and short enough that no worker is left with much to do."""
PATIENCE = 30.0
"""Seconds without any worker after which it is said that one is waited for."""
LONGEST = 900.0
"""Seconds without any worker, since the first, after which the run ends. A cluster that grows may need minutes."""

Warn = Callable[[str], None]


@dataclass(order=True)
class Task:
    """A message that waits for its answer. order: of all tasks. pack: it, and what the client remembers, as plain data.
    bundle: Ray's name of the arrays that it shares with others. deaths: of workers that had it.
    """

    order: int
    pack: Callable[[], Any] = field(compare=False)
    bundle: Any = field(compare=False, default=None)
    deaths: int = field(compare=False, default=0)


@dataclass
class _Worker:
    """number: as it is called. starting: Ray's name of its first answer, until that is there. chunks: what it has to
    do, in order, by Ray's name of the answer. since: when it can have begun with the first of that.
    """

    number: int
    actor: Any
    starting: Any
    node: str = ""
    chunks: deque[tuple[Any, list[Task]]] = field(default_factory=deque)
    since: float = 0.0


class ClientPool:
    """Workers for the messages of one grid.

    make_app: makes the ClientApp, in the worker. prepare: what a worker does, besides, before its first message. warn:
    gets a line when a worker has died, and what workers warn of. failures: how many have died.
    """

    def __init__(
        self,
        cluster: Cluster,
        make_app: Callable[[], Any],
        size: Size,
        warn: Warn,
        *,
        prepare: Callable[[], object] | None = None,
        run_id: int = 1,
    ) -> None:
        self._ray, self._cluster, self._size, self._warn = ray_module(), cluster, size, warn
        number = size.workers_on(cluster)
        self._parts = self._ray.put((make_app, prepare, run_id))
        self._class = self._ray.remote(ClientWorker)
        self._queue: list[Task] = []
        self._answers: dict[int, Any] = {}
        self._told: set[str] = set()
        self._seconds: float | None = None
        self._stillborn, self._ever = 0, False
        self.failures = 0
        self._workers = [self._started(one) for one in range(1, number + 1)]

    @property
    def count(self) -> int:
        """How many workers there are."""
        return len(self._workers)

    def put(self, arrays: Sequence[Any]) -> Any:
        """Give arrays, as plain data, to all workers. Returns a name that keeps them there as long as it is kept."""
        return self._ray.put(list(arrays))

    def send(self, tasks: Sequence[Task]) -> None:
        """Take on tasks. Whoever has nothing to do begins."""
        for task in tasks:
            heapq.heappush(self._queue, task)
        self._move_on(0.0)

    def answer(self, order: int) -> Any:
        """The answer to a task, once: its reply and the client's state, as plain data; a str says why there is none."""
        waiting = began = time.monotonic()
        while order not in self._answers:
            self._move_on(1.0)
            if any(worker.starting is None for worker in self._workers):
                waiting = time.monotonic()
            elif time.monotonic() - waiting > PATIENCE:
                if not self._ever and time.monotonic() - began > LONGEST:
                    raise FedsimError(
                        f"no client worker has begun in {LONGEST / 60:g} minutes; `fedsim doctor --ray ADDRESS` looks "
                        "over the cluster"
                    )
                self._look_for_room()
                waiting = time.monotonic()
        return self._answers.pop(order)

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            self._end(worker)
        self._workers, self._queue = [], []

    def _started(self, number: int) -> _Worker:
        size = self._size
        actor = self._class.options(
            num_cpus=size.cpus, num_gpus=size.gpus, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        ).remote(size.threads, size.gpus)
        return _Worker(number, actor, actor.prepare.remote(self._parts))

    def _move_on(self, timeout: float) -> None:
        """Give out what there is to do, wait for answers (seconds), and take in those that are there."""
        self._give_out()
        owners = {worker.starting: worker for worker in self._workers if worker.starting is not None}
        owners.update({reference: worker for worker in self._workers for reference, _ in worker.chunks})
        if not owners:
            return
        ready, _ = self._ray.wait(list(owners), num_returns=1, timeout=timeout)
        if ready:  # others may have come at the same time
            ready, _ = self._ray.wait(list(owners), num_returns=len(owners), timeout=0)
        for worker in {id(owners[reference]): owners[reference] for reference in ready}.values():
            self._take_in(worker, set(ready))
        self._end_hanging()
        self._give_out()

    def _end_hanging(self) -> None:
        """End workers that take too long over what they are at."""
        patience = self._size.patience
        if patience is None:
            return
        for worker in list(self._workers):
            if worker.chunks and worker.starting is None:
                chunk = worker.chunks[0][1]
                if time.monotonic() - worker.since > patience * len(chunk):
                    if len(chunk) == 1:  # of several nobody knows yet who it is
                        chunk[0].deaths = DEATHS
                    self._dead(worker, TimeoutError(f"it took longer than runtime.client_timeout = {patience:g} s"))

    def _give_out(self) -> None:
        """One chunk for everybody before anybody gets a second."""
        for level in range(AHEAD):
            for worker in self._workers:
                if self._queue and worker.starting is None and len(worker.chunks) == level:
                    self._give(worker, self._chunk())

    def _chunk(self) -> list[Task]:
        """The next tasks to go out together: few where each takes long or few are left, and one that may be deadly by
        itself.
        """
        most = max(1, len(self._queue) // (AHEAD * self.count))
        if self._seconds is None:
            most = min(most, 4)
        else:
            most = min(most, max(1, int(CHUNK_SECONDS / max(self._seconds, 1e-6))))
        chunk = [heapq.heappop(self._queue)]
        while len(chunk) < most and self._queue and not chunk[0].deaths:
            following = self._queue[0]
            if following.deaths or following.bundle is not chunk[0].bundle:
                break
            chunk.append(heapq.heappop(self._queue))
        return chunk

    def _give(self, worker: _Worker, chunk: list[Task]) -> None:
        packed = [task.pack() for task in chunk]
        if not worker.chunks:
            worker.since = time.monotonic()
        worker.chunks.append((worker.actor.work.remote(chunk[0].bundle, packed), chunk))

    def _take_in(self, worker: _Worker, ready: set[Any]) -> None:
        errors = self._ray.exceptions
        try:
            if worker.starting in ready:
                self._begun(worker, self._ray.get(worker.starting))
            while worker.chunks and worker.chunks[0][0] in ready:
                reference, chunk = worker.chunks[0]
                answers, seconds, notes = self._ray.get(reference)
                worker.chunks.popleft()
                worker.since = time.monotonic()
                self._answers.update(zip((task.order for task in chunk), answers, strict=True))
                each = seconds / len(chunk)
                self._seconds = each if self._seconds is None else 0.5 * (self._seconds + each)
                self._tell(worker, notes)
        except errors.RayTaskError as error:  # not a client's error, which is an answer, but one of the worker's own
            reason = getattr(error.cause, "client_exc", error.cause)  # what it could not even read, by its cause
            raise FedsimError(f"{_name(worker)} cannot work: {type(reason).__name__}: {reason}") from error
        except errors.RayError as error:
            self._dead(worker, error)

    def _begun(self, worker: _Worker, said: tuple[str, str | None, bool, list[str]]) -> None:
        worker.node, reason, bad_input, notes = said
        if reason is not None:
            if bad_input and not self._ever:
                raise InputError(reason)
            raise FedsimError(f"{_name(worker)} cannot work: {reason}")
        worker.starting, self._stillborn, self._ever = None, 0, True
        self._tell(worker, notes)

    def _dead(self, worker: _Worker, error: Exception) -> None:
        """Replace a worker. Its tasks are tried again; the first that it had not answered is the one it died over."""
        self.failures += 1
        self._end(worker)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if worker.starting is not None:
            self._stillborn += 1
            if self._stillborn >= DEATHS:
                raise FedsimError(
                    f"client workers cannot start; {_name(worker)}: {' '.join(str(error).split())[-600:]} "
                    "(`fedsim doctor --ray ADDRESS` checks whether the cluster's machines can import fedsim)"
                )
        again = 0
        for place, (_, chunk) in enumerate(worker.chunks):
            for task in chunk:
                task.deaths += place == 0
                if task.deaths >= DEATHS:
                    hung = isinstance(error, TimeoutError)
                    self._answers[task.order] = reason if hung else f"its worker died {task.deaths} times: {reason}"
                else:
                    heapq.heappush(self._queue, task)
                    again += 1
        messages = f"{again} message{'' if again == 1 else 's'} {'is' if again == 1 else 'are'} tried again"
        self._warn(f"{_name(worker)} died and is replaced; {messages} ({reason})")
        self._workers[self._workers.index(worker)] = self._started(worker.number)

    def _tell(self, worker: _Worker, notes: Sequence[str]) -> None:
        for text in notes:
            if text not in self._told:
                self._told.add(text)
                self._warn(f"{_name(worker)}: {text}")

    def _look_for_room(self) -> None:
        fit = self._size.fits(self._cluster)
        if not fit:
            raise FedsimError(f"no machine of the cluster has room for a client worker any more: {self._size.words()}")
        self._warn(
            f"no client worker has begun for {PATIENCE:g} s: the cluster ({self._cluster.words()}) may be busy with "
            "other work, or still be starting"
        )

    def _end(self, worker: _Worker) -> None:
        with suppress(Exception):
            self._ray.kill(worker.actor)


def _name(worker: _Worker) -> str:
    return f"client worker {worker.number}{f' on {worker.node}' if worker.node else ''}"
