"""Attacks in a process of their own, which gets the bytes of its jobs and nothing else. One that dies, dies alone."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fedsim.adversaries.base import Reconstruction
from fedsim.adversaries.storage import JobStore, observations_of
from fedsim.attackers import launching, wire
from fedsim.attackers.base import Failure, Found
from fedsim.errors import FedsimError
from fedsim.progress import Listener

NONSENSE = Failure("", "the attack's process sent what is no answer")


class ProcessAttacker:
    """Has the plugin's work done by a process. plugin: as `rebuilding.described` words it. store: where the jobs are
    read that it asks for. The process has the device and the number of threads of this one.
    """

    def __init__(self, plugin: Mapping[str, Any], store: JobStore, device: torch.device) -> None:
        self._plugin, self._store, self._device = plugin, store, device
        self._process: launching.Process | None = None

    def ready(self) -> None:
        """See `Attacker`."""
        self._hired()

    def batches(self) -> bool | Failure:
        """See `Attacker`."""
        message = self._ask({"do": "batches"}, _Served(self._store, ()), _nobody)
        return message if isinstance(message, Failure) else bool(message.header.get("yes"))

    def attack(self, job: str, seed: int, tell: Listener) -> Found:
        """See `Attacker`."""
        found = self._answers({"do": "attack", "job": job, "seed": seed}, _Served(self._store, [job]), tell, [""])
        return found if isinstance(found, Failure) else found[""]

    def attack_many(self, jobs: Sequence[str], seeds: Sequence[int], tell: Listener) -> list[Found] | Failure:
        """See `Attacker`."""
        words = {"do": "attack_many", "jobs": list(jobs), "seeds": list(seeds)}
        names = [str(place) for place in range(len(jobs))]
        found = self._answers(words, _Served(self._store, jobs), tell, names)
        return found if isinstance(found, Failure) else [found[name] for name in names]

    def combine(
        self, parts: Sequence[tuple[str, Reconstruction]], seed: int, tell: Listener
    ) -> Mapping[str, Found] | Failure:
        """See `Attacker`."""
        jobs = [job for job, _ in parts]
        words = {"do": "combine", "parts": jobs, "seed": seed}
        return self._answers(words, _Served(self._store, jobs, [found for _, found in parts]), tell)

    def close(self) -> None:
        """Hang up; a process that is at work is killed."""
        self._drop(at_once=False)

    def _answers(
        self, words: dict[str, Any], served: _Served, tell: Listener, names: Sequence[str] | None = None
    ) -> dict[str, Found] | Failure:
        message = self._ask(words, served, tell)
        if isinstance(message, Failure):
            return message
        try:
            found = wire.unpacked(message)
            if names is not None and list(found) != list(names):
                raise ValueError("not the answers that were asked for")
        except (ValueError, KeyError, TypeError, AttributeError):
            self._drop(at_once=True)
            return NONSENSE
        if served.fault is not None and any(isinstance(one, Failure) for one in found.values()):
            return served.fault
        return found

    def _ask(self, words: dict[str, Any], served: _Served, tell: Listener) -> wire.Message | Failure:
        """Have a piece of work done: serve what is asked for meanwhile, and pass on how far it is."""
        process = self._hired()
        if isinstance(process, Failure):
            return process
        try:
            message = _said(process, wire.Message(words))
            while message is not None and not isinstance(message, Failure):
                if "progress" in message.header:
                    tell(*_progress(message.header["progress"]))
                    message = _said(process)
                elif "want" in message.header:
                    message = _said(process, served.answer(message.header))
                elif "failed" in message.header:
                    return served.fault or _failure(message.header["failed"])
                else:
                    return message
        except BaseException:  # an interrupt, most likely, and the process is in the middle of its work
            self._drop(at_once=True)
            raise
        if message is None:
            return self._lost()
        self._drop(at_once=True)
        return message

    def _hired(self) -> launching.Process | Failure:
        """The process, started anew where there is none. It has said that it is ready."""
        if self._process is not None:
            return self._process
        try:
            process = self._process = launching.launch()
        except OSError as error:
            return Failure("", f"the attack's process could not be started: {error.strerror or error}")
        words = {
            "plugin": dict(self._plugin),
            "device": str(self._device),
            "threads": torch.get_num_threads(),
            "search_path": launching.search_path(),
        }
        try:
            message = _said(process, wire.Message(words))
        except BaseException:
            self._drop(at_once=True)
            raise
        if message is None:
            return self._lost()
        if isinstance(message, Failure):
            self._drop(at_once=True)
            return message
        if "failed" in message.header:
            self._drop(at_once=False)
            return _failure(message.header["failed"])
        return process

    def _lost(self) -> Failure:
        """Forget a process that has ended, and say how it did."""
        return Failure("", _how_it_ended(self._drop(at_once=False)))

    def _drop(self, at_once: bool) -> int | None:
        process, self._process = self._process, None
        return process.end(at_once) if process is not None else None


class _Served:
    """What a process may ask for in a piece of work: the jobs of that work, the observations that these are made of,
    and the answers that are to be put together.

    fault: why something that it may have was not to be had here. It stands in the place of whatever error the plugin
    makes of that, and may name files, which the process is not told.
    """

    def __init__(self, store: JobStore, jobs: Sequence[str], answers: Sequence[Reconstruction] = ()) -> None:
        self._store, self._answers = store, answers
        self._granted = {("job", job) for job in jobs}
        self.fault: Failure | None = None

    def answer(self, asked: Mapping[str, Any]) -> wire.Message:
        """The message for a request. What is not granted, or not to be had, is refused."""
        kind, where = str(asked["want"]), asked.get("at")
        if kind == "answer" and isinstance(where, int) and 0 <= where < len(self._answers):
            return wire.packed({"": self._answers[where]})
        if not isinstance(where, str) or (kind, where) not in self._granted:
            return wire.Message({"refused": f"there is no {kind} {where} in this work"})
        try:
            data = self._store.read("job" if kind == "job" else "observation", where)
        except FedsimError as error:
            self.fault = Failure.of(error)
            return wire.Message({"refused": f"{kind} {where} cannot be read"})
        if kind == "job":
            self._granted |= {("observation", one) for one in observations_of(data)}
        return wire.Message({"sent": True}, data)


def _said(process: launching.Process, first: wire.Message | None = None) -> wire.Message | Failure | None:
    """The next message of a process, after one to it; None where it has ended, NONSENSE where what came is none."""
    try:
        if first is not None:
            wire.send(process.socket, first.header, first.body)
        return wire.receive(process.socket) if process.wait_for_word() else None
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


def _nobody(done: int, total: int, note: str) -> None:
    """Hears nothing."""
