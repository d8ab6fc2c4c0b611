"""A process that works for one adversary: told what it is, asked for work, and served what that work is made of.

Needs no torch: whoever only has work done and passes on what comes of it need not be able to read that.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fedsim.attackers import launching, wire
from fedsim.attackers.base import Failure, Lost
from fedsim.attackers.wire import NONSENSE
from fedsim.errors import FedsimError
from fedsim.progress import Listener

if TYPE_CHECKING:
    from fedsim.adversaries.storage import Kind


class Source(Protocol):
    """Where the bytes of jobs and observations are read."""

    def read(self, kind: Kind, address: str) -> bytes:
        """The bytes at an address. Raises FedsimError where they are damaged or missing."""
        ...


@dataclass(frozen=True)
class Role:
    """What a process is told to be.

    plugin: as `rebuilding.described` words it. device: a word for `choose_device`. threads: of torch. share: the part
    of a GPU's memory that it may take, (0, 1]. patience: seconds that it may work on each job; None: for ever.
    """

    plugin: Mapping[str, Any]
    device: str
    threads: int
    share: float = 1.0
    patience: float | None = None

    def words(self) -> dict[str, Any]:
        """As the process is told, with where modules are found and which accelerators may be used here and now."""
        return {
            "plugin": dict(self.plugin),
            "device": self.device,
            "threads": self.threads,
            "share": self.share,
            "search_path": launching.search_path(),
            "visible": launching.visible_devices(),
        }


class Served:
    """What a process may ask for in a piece of work: the jobs of that work, the observations that these are made of,
    and the answers that are to be put together, each as a message.

    fault: why something that it may have was not to be had here. It stands in the place of whatever error the plugin
    makes of that, and may name files, which the process is not told.
    """

    def __init__(self, source: Source, jobs: Sequence[str], answers: Sequence[wire.Message] = ()) -> None:
        self._source, self._answers = source, answers
        self._granted = {("job", job) for job in jobs}
        self.fault: Failure | None = None

    def answer(self, asked: Mapping[str, Any]) -> wire.Message:
        """The message for a request. What is not granted, or not to be had, is refused."""
        kind, where = str(asked["want"]), asked.get("at")
        if kind == "answer" and isinstance(where, int) and 0 <= where < len(self._answers):
            return self._answers[where]
        if not isinstance(where, str) or (kind, where) not in self._granted:
            return wire.Message({"refused": f"there is no {kind} {where} in this work"})
        try:
            data = self._source.read("job" if kind == "job" else "observation", where)
        except FedsimError as error:
            self.fault = Failure.of(error)
            return wire.Message({"refused": f"{kind} {where} cannot be read"})
        if kind == "job":
            self._granted |= {("observation", one) for one in json.loads(data)["observations"]}
        return wire.Message({"sent": True}, data)


class Hired:
    """One process after another, if need be: a new one where the last has ended. None runs before it is needed."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._process: launching.Process | None = None

    def ask(self, words: Mapping[str, Any], served: Served, tell: Listener) -> wire.Message | Failure:
        """Have a piece of work done: serve what is asked for meanwhile, and pass on how far it is."""
        process = self.ready()
        if isinstance(process, Failure):
            return process
        clock = _Clock(self._role.patience, len(words.get("jobs") or words.get("parts") or "1"))
        try:
            message = _said(process, wire.Message(dict(words)), clock)
            while message is not None and not isinstance(message, Failure):
                if "progress" in message.header:
                    tell(*_progress(message.header["progress"]))
                    message = _said(process, None, clock)
                elif "want" in message.header:
                    message = _said(process, served.answer(message.header), clock)
                elif "failed" in message.header:
                    return served.fault or _failure(message.header["failed"])
                else:
                    return message
        except TimeoutError:
            self.end(at_once=True)
            return Failure("", clock.words())
        except BaseException:  # an interrupt, most likely, and the process is in the middle of its work
            self.end(at_once=True)
            raise
        if message is None:
            return self._lost()
        self.end(at_once=True)
        return message

    def ready(self) -> launching.Process | Failure:
        """The process, started anew where there is none. It has said that it is ready."""
        if self._process is not None:
            return self._process
        try:
            process = self._process = launching.launch()
        except OSError as error:
            return Lost("", f"the attack's process could not be started: {error.strerror or error}")
        try:
            message = _said(process, wire.Message(self._role.words()))
        except BaseException:
            self.end(at_once=True)
            raise
        if message is None:
            return self._lost()
        if isinstance(message, Failure):
            self.end(at_once=True)
            return message
        if "failed" in message.header:
            self.end(at_once=False)
            return _failure(message.header["failed"])
        return process

    def end(self, at_once: bool) -> int | None:
        """End the process, if there is one: by hanging up, or at once. Returns its exit code, where it is known."""
        process, self._process = self._process, None
        return process.end(at_once) if process is not None else None

    def _lost(self) -> Failure:
        """Forget a process that has ended, and say how it did. One that ended by itself had its reasons."""
        code = self.end(at_once=False)
        return (Lost if code is None or code < 0 else Failure)("", _how_it_ended(code))


class _Clock:
    """Runs while a process works. patience: seconds for each of its jobs, so many of them; None: for ever."""

    def __init__(self, patience: float | None, jobs: int) -> None:
        self._patience, self._jobs, self._began = patience, jobs, time.monotonic()

    @property
    def left(self) -> float | None:
        """Seconds; None: any number."""
        if self._patience is None:
            return None
        return max(0.0, self._began + self._patience * self._jobs - time.monotonic())

    def words(self) -> str:
        """Why it was ended."""
        each = "" if self._jobs == 1 else f" for each of {self._jobs} jobs"
        return f"it took longer than runtime.attack_timeout = {self._patience:g} s{each}, and was ended"


def _said(
    process: launching.Process, first: wire.Message | None = None, clock: _Clock | None = None
) -> wire.Message | Failure | None:
    """The next message of a process, after one to it; None where it has ended, NONSENSE where what came is none. Raises
    TimeoutError where the time of its work is up.
    """
    try:
        if first is not None:
            wire.send(process.socket, first.header, first.body)
        return wire.receive(process.socket) if process.wait_for_word(clock.left if clock else None) else None
    except TimeoutError:
        raise
    except (EOFError, OSError):
        return None
    except (ValueError, RecursionError, MemoryError):  # not JSON, or far too much of it
        return NONSENSE


def _failure(said: Any) -> Failure:
    """What a process says of a failure; NONSENSE, if it is nonsense."""
    match said:
        case [str(kind), str(text)]:
            return Failure(kind, text)
    return NONSENSE


def _progress(said: Any) -> tuple[int, int, str]:
    """What a process says of how far it is; nothing, if it is nonsense."""
    match said:
        case [int(done), int(total), str(note)]:
            return done, total, note
    return 0, 1, ""


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "the attack's process is gone"
    if code >= 0:
        return f"the attack's process ended by itself with code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
    likely = "; perhaps the machine ran out of memory" if name == "SIGKILL" else ""
    return f"the attack's process ended with signal {-code} ({name}){likely}"
