"""What a Ray worker does for attacks: it has a piece of work done by a process of the adversary's own, and hands on
what that process says. It never looks into that, so that it needs no torch; and no plugin is ever imported here.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedsim.attackers.base import Failure
from fedsim.attackers.hiring import Hired, Role, Served
from fedsim.attackers.wire import NONSENSE, Message
from fedsim.cluster.board import Teller
from fedsim.cluster.connecting import ray_module
from fedsim.errors import FedsimError

WARM = 30.0
"""Seconds for which an adversary's process is kept for its next piece of work."""

WARM_ON_GPU = 1.0
"""The same, where it holds memory of a GPU that others may be given meanwhile."""


@dataclass(frozen=True)
class Work:
    """A piece of work: all that it needs.

    name: on the board. adversary: whose it is; no other adversary of any run is called the same. role: what its process
    is to be. words: what the process is asked. jobs: the bytes of the jobs in it, by address. observations: references
    to the bytes of what these are made of, by address. answers: what is to be put together.
    """

    name: str
    adversary: str
    role: Role
    words: Mapping[str, Any]
    jobs: Mapping[str, bytes]
    observations: Mapping[str, Any]
    answers: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Done:
    """What came of it. seconds: that it took, without starting the process. fault: why something of the work was not to
    be had, which is then what is to blame for a failure.
    """

    said: Message | Failure
    seconds: float = 0.0
    fault: Failure | None = None


class _Given:
    """The bytes of a piece of work. Observations come out of the cluster's store one by one, as they are asked for."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def read(self, kind: str, address: str) -> bytes:
        """See `hiring.Source`. Raises Ray's errors where the store has lost something."""
        where = self._work.jobs if kind == "job" else self._work.observations
        if address not in where:
            raise FedsimError(f"{kind} {address} was not given with the work")
        data = where[address] if kind == "job" else ray_module().get(where[address])
        if hashlib.sha256(data).hexdigest() != address:
            raise FedsimError(f"{kind} {address} was damaged on its way to the worker")
        return bytes(data)


class _Kept:
    """The process of the adversary that last had work done here. It ends when another adversary comes, or nobody."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._whose: Any = None
        self._hired: Hired | None = None
        self._timer: threading.Timer | None = None

    def take(self, work: Work) -> Hired:
        """The process for a piece of work, which is the caller's until it is put back."""
        whose = (work.adversary, repr(work.role.words()))
        with self._lock:
            self._stop_timer()
            if self._hired is not None and self._whose != whose:
                self._end()
            hired, self._hired, self._whose = self._hired or Hired(work.role), None, whose
        return hired

    def put_back(self, hired: Hired, seconds: float) -> None:
        """Keep it for so long."""
        with self._lock:
            self._hired = hired
            self._timer = threading.Timer(seconds, self._expired)
            self._timer.daemon = True
            self._timer.start()

    def _expired(self) -> None:
        with self._lock:
            if self._timer is threading.current_thread():
                self._end()

    def _end(self) -> None:
        hired, self._hired = self._hired, None
        if hired is not None:
            hired.end(at_once=True)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_kept = _Kept()


def do(work: Work, board: Any) -> Done:
    """Do a piece of work. board: where to tell how far it is."""
    tell = Teller(board, work.name)
    tell.begun()
    hired = _kept.take(work)
    try:
        process = hired.ready()
        if isinstance(process, Failure):
            return Done(process)
        served = Served(_Given(work), list(work.jobs), work.answers)
        start = time.perf_counter()
        said = hired.ask(work.words, served, tell)
        seconds = time.perf_counter() - start
        if isinstance(said, Message) and not _is_answer(said):
            hired.end(at_once=True)
            said = NONSENSE
        return Done(said, seconds, served.fault)
    finally:
        _kept.put_back(hired, WARM if work.role.device == "cpu" else WARM_ON_GPU)


def _is_answer(said: Message) -> bool:
    return isinstance(said.header.get("answers"), dict) or isinstance(said.header.get("yes"), bool)
