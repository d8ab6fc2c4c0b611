"""Attacks in a process of their own, which gets the bytes of its jobs and nothing else. One that dies, dies alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fedsim.adversaries.base import Reconstruction
from fedsim.adversaries.storage import Lazy
from fedsim.attackers import wire
from fedsim.attackers.base import Expected, Failure, Found
from fedsim.attackers.hiring import Hired, Role, Served, Source
from fedsim.progress import Listener


class ProcessAttacker:
    """Has the plugin's work done by a process. plugin: as `rebuilding.described` words it. store: where the jobs are
    read that it asks for. patience: seconds for a job. The process has the device and the number of threads of this
    one.
    """

    def __init__(
        self, plugin: Mapping[str, Any], store: Source, device: torch.device, patience: float | None = None
    ) -> None:
        self._store = store
        self._hired = Hired(Role(plugin, str(device), torch.get_num_threads(), patience=patience))

    def ready(self) -> None:
        """See `Attacker`."""
        self._hired.ready()

    def batches(self) -> bool | Failure:
        """See `Attacker`."""
        message = self._hired.ask({"do": "batches"}, Served(self._store, ()), nobody)
        return message if isinstance(message, Failure) else bool(message.header.get("yes"))

    def expect(self, works: Sequence[Expected], together: Listener | None = None) -> bool:
        """Its process does one thing after another."""
        return False

    def attack(self, job: str, seed: int, tell: Listener) -> Found:
        """See `Attacker`."""
        found = self._answers({"do": "attack", "job": job, "seed": seed}, Served(self._store, [job]), tell, [""])
        return found if isinstance(found, Failure) else found[""]

    def attack_many(self, jobs: Sequence[str], seeds: Sequence[int], tell: Listener) -> list[Found] | Failure:
        """See `Attacker`."""
        words = {"do": "attack_many", "jobs": list(jobs), "seeds": list(seeds)}
        names = [str(place) for place in range(len(jobs))]
        found = self._answers(words, Served(self._store, jobs), tell, names)
        return found if isinstance(found, Failure) else [found[name] for name in names]

    def combine(
        self, parts: Sequence[tuple[str, Reconstruction]], seed: int, tell: Listener
    ) -> Mapping[str, Found] | Failure:
        """See `Attacker`."""
        jobs = [job for job, _ in parts]
        answers = Lazy(lambda part: wire.packed({"": part[1]}), parts)
        words = {"do": "combine", "parts": jobs, "seed": seed}
        return self._answers(words, Served(self._store, jobs, answers), tell)

    def took(self, job: str = "") -> float | None:
        """As long as it was waited for."""
        return None

    def close(self) -> None:
        """Hang up; a process that is at work is killed."""
        self._hired.end(at_once=False)

    def _answers(
        self, words: dict[str, Any], served: Served, tell: Listener, names: Sequence[str] | None = None
    ) -> dict[str, Found] | Failure:
        message = self._hired.ask(words, served, tell)
        if isinstance(message, Failure):
            return message
        found = wire.answers_in(message, names)
        if isinstance(found, Failure):
            self._hired.end(at_once=True)
        elif served.fault is not None and any(isinstance(one, Failure) for one in found.values()):
            return served.fault
        return found


def nobody(done: int, total: int, note: str) -> None:
    """Hears nothing."""
