"""What an attack process does: it is told a plugin and a device, then runs jobs, whose bytes it asks for by address.

It knows nothing of the run: no path, no experiment, no seed but its jobs' own.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fedsim.adversaries.base import Reconstruction
from fedsim.adversaries.storage import Jobs, Kind
from fedsim.attackers import wire
from fedsim.attackers.base import Failure, Found
from fedsim.attackers.inline import InlineAttacker
from fedsim.attackers.launching import VISIBLE
from fedsim.attackers.rebuilding import rebuilt
from fedsim.devices import choose_device
from fedsim.errors import FedsimError
from fedsim.tensorfile import digest


def serve(run: socket.socket) -> int:
    """Until the run hangs up. Returns the exit code."""
    try:
        return _Worker(run).serve()
    except EOFError:
        return 0


class _Worker:
    def __init__(self, run: socket.socket) -> None:
        self._run = run

    def serve(self) -> int:
        words = wire.receive(self._run).header
        try:
            attacker = self._made(words)
        except Exception as error:
            self._send(wire.Message({"failed": [type(error).__name__, str(error)]}))
            return 1
        self._send(wire.Message({"ready": True}))
        work: dict[str, Callable[[dict[str, Any]], wire.Message]] = {
            "batches": lambda words: _message(attacker.batches()),
            "attack": lambda words: _message({"": attacker.attack(words["job"], words["seed"], self._tell)}),
            "attack_many": lambda words: _message(attacker.attack_many(words["jobs"], words["seeds"], self._tell)),
            "combine": lambda words: _message(
                attacker.combine(_Answers(self, words["parts"]), words["seed"], self._tell)
            ),
        }
        while True:
            words = wire.receive(self._run).header
            self._send(work[words["do"]](words))
            sys.stdout.flush()
            sys.stderr.flush()

    def _made(self, words: dict[str, Any]) -> InlineAttacker:
        sys.path[:] = words["search_path"]
        if words["threads"] != torch.get_num_threads():
            torch.set_num_threads(words["threads"])
        _see(words["visible"])
        device = choose_device(words["device"])
        if device.type == "cuda" and words["share"] < 1:
            torch.cuda.set_per_process_memory_fraction(words["share"], device)
        return InlineAttacker(rebuilt(words["plugin"]), Jobs(self._fetch), device)

    def _fetch(self, kind: Kind, address: str) -> bytes:
        data = self.ask({"want": kind, "at": address}).body
        if digest(data) != address:
            raise FedsimError(f"the bytes of {kind} {address} are others than its address says")
        return data

    def ask(self, words: dict[str, Any]) -> wire.Message:
        """Ask the run for something. Raises FedsimError where it is not to be had."""
        self._send(wire.Message(words))
        try:
            answer = wire.receive(self._run)
        except EOFError:
            os._exit(1)
        if "refused" in answer.header:
            raise FedsimError(answer.header["refused"])
        return answer

    def _tell(self, done: int, total: int, note: str) -> None:
        self._send(wire.Message({"progress": [int(done), int(total), str(note)]}))

    def _send(self, message: wire.Message) -> None:
        try:
            wire.send(self._run, message.header, message.body)
        except OSError:  # nobody is left who would want to know; not even the plugin may go on
            os._exit(1)


def _see(visible: Mapping[str, str]) -> None:
    """Only these accelerators. Nothing has looked at any yet, so that this is in time."""
    for key in [one for one in os.environ if one.endswith(VISIBLE)]:
        del os.environ[key]
    os.environ.update(visible)


class _Answers(Sequence[tuple[str, Reconstruction]]):
    """Addresses of jobs with their answers, each asked for when it is looked at."""

    def __init__(self, worker: _Worker, jobs: list[str]) -> None:
        self._worker, self._jobs = worker, jobs

    def __len__(self) -> int:
        return len(self._jobs)

    def __getitem__(self, place: Any) -> Any:
        found = wire.unpacked(self._worker.ask({"want": "answer", "at": place}))[""]
        return self._jobs[place], found


def _message(outcome: bool | Mapping[str, Found] | Sequence[Found] | Failure) -> wire.Message:
    """What came of a piece of work, in a message: yes or no, answers by name or by place, or why there is none."""
    if isinstance(outcome, bool):
        return wire.Message({"yes": outcome})
    if isinstance(outcome, Failure):
        return wire.Message({"failed": [outcome.kind, outcome.text]})
    if isinstance(outcome, Mapping):
        return wire.packed(outcome)
    return wire.packed({str(place): one for place, one in enumerate(outcome)})
