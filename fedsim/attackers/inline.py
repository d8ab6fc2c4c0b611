"""Attacks in the process that asks for them: the calls of a plugin, with each error as a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fedsim import answers, progress
from fedsim.adversaries.base import Job, Reconstruction
from fedsim.adversaries.storage import Jobs, Lazy
from fedsim.attackers.base import Expected, Failure, Found
from fedsim.progress import Listener
from fedsim.report.formats import counted


class InlineAttacker:
    """Calls the plugin here and now. settings: the plugin. jobs: where its jobs are read."""

    def __init__(self, settings: Any, jobs: Jobs, device: torch.device) -> None:
        self._plugin, self._jobs, self._device = settings, jobs, device

    def ready(self) -> None:
        """There is nothing to wait for."""

    def batches(self) -> bool | Failure:
        """See `Attacker`."""
        try:
            return bool(self._plugin.batches(self._device))
        except Exception as error:
            return Failure.of(error)

    def expect(self, works: Sequence[Expected], together: Listener | None = None) -> bool:
        """It does one thing after another."""
        return False

    def attack(self, job: str, seed: int, tell: Listener) -> Found:
        """See `Attacker`."""
        try:
            whole = self._jobs.get(job)
            with progress.listening(tell):
                return _checked(self._plugin.attack(whole, self._device, _generator(seed)))
        except Exception as error:
            return Failure.of(error)

    def attack_many(self, jobs: Sequence[str], seeds: Sequence[int], tell: Listener) -> list[Found] | Failure:
        """See `Attacker`."""
        try:
            whole = [self._jobs.get(job) for job in jobs]
            with progress.listening(tell):
                found = list(self._plugin.attack_many(whole, self._device, [_generator(seed) for seed in seeds]))
            if len(found) != len(jobs):
                raise ValueError(f"attack_many returned {counted(len(found), 'answer')} to {len(jobs)} jobs")
            return [_checked(one) for one in found]
        except Exception as error:
            return Failure.of(error)

    def combine(
        self, parts: Sequence[tuple[str, Reconstruction]], seed: int, tell: Listener
    ) -> Mapping[str, Found] | Failure:
        """See `Attacker`."""
        try:
            with progress.listening(tell):
                found = self._plugin.combine(self._whole(parts), self._device, _generator(seed))
            if not isinstance(found, Mapping):
                return {"": _checked(found)}
            answers.check_names(found)
            return {name: _checked(one) for name, one in found.items()}
        except Exception as error:
            return Failure.of(error)

    def took(self, job: str = "") -> float | None:
        """As long as it was waited for."""
        return None

    def _whole(self, parts: Sequence[tuple[str, Reconstruction]]) -> Sequence[tuple[Job, Reconstruction]]:
        """Jobs with their answers. A job holds a model and an update, so that not all of them are in memory at once."""
        return Lazy(lambda part: (self._jobs.get(part[0]), part[1]), parts)

    def close(self) -> None:
        """Nothing runs on."""


def _checked(found: Any) -> Found:
    """What a plugin returned, if it has the form of an answer."""
    try:
        answers.check_form(found)
    except Exception as error:
        return Failure.of(error)
    answer: Reconstruction = found
    return answer


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
