"""An adversary on one trial: its capture, its jobs as stored bytes, its attacks and their answers. And the rules."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from fedsim import answers, seeding
from fedsim.adversaries.base import Job, Observation, Reconstruction
from fedsim.adversaries.storage import observation_bytes, observation_from
from fedsim.testing.calls import (
    Call,
    flattened,
    twice,
)
from fedsim.testing.observations import Trial
from fedsim.testing.threat_words import name_of

CPU = torch.device("cpu")
SEED = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Tried:
    """One adversary on one trial. Every step is taken once, when a rule first looks at it, and only after what it
    builds upon has held.
    """

    plugin: Any
    trial: Trial

    @functools.cached_property
    def settings_before(self) -> dict[str, str]:
        """What the plugin holds, before anything is asked of it here."""
        return held(self.plugin)

    @functools.cached_property
    def captures(self) -> list[Call]:
        """Of each observation."""
        _ = self.settings_before

        def jobs(seen: Observation) -> list[Any]:
            return list(self.plugin.capture(seen))

        place = self._place("capture")
        return [twice(place, jobs, functools.partial(_given, seen)) for seen in self.trial.shown]

    @functools.cached_property
    def jobs(self) -> list[tuple[int, Job]]:
        """The trial's size of the round, and each job made of it that is one."""
        made = zip(self.trial.sizes, self.captures, strict=True)
        return [(size, job) for size, call in made if call.ended for job in call.value if not no_job(job)]

    @functools.cached_property
    def stored(self) -> list[tuple[int, Job | Exception]]:
        """The same as read back from bytes, or why one cannot be."""
        return [(size, through_bytes(job)) for size, job in self.jobs]

    @functools.cached_property
    def attacks(self) -> list[tuple[int, Call]]:
        """Of each stored job, with the trial's size."""
        out = []
        for place, (size, job) in enumerate(self.stored):
            if isinstance(job, Job):
                given: Callable[[], Mapping[str, Any]] = lambda job=job, place=place: {  # type: ignore[misc]  # noqa: E731
                    "job": through_bytes(job),
                    "device": CPU,
                    "rng": seeding.generator(SEED, "attack", place),
                }
                out.append((size, twice(self._place("attack"), self.plugin.attack, given)))
        return out

    @functools.cached_property
    def parts(self) -> list[tuple[Job, Reconstruction]]:
        """What `combine` gets: the jobs whose attacks gave an answer that will do."""
        return [
            (job, call.value)
            for (_, job), (size, call) in zip(self.stored, self.attacks, strict=False)
            if isinstance(job, Job) and call.ended and not unscorable(call.value, self.trial.shape, size)
        ]

    @functools.cached_property
    def combined(self) -> list[tuple[int, Call]]:
        """Of all parts, with the size of the whole trial; nothing where there is no `combine`."""
        if not hasattr(self.plugin, "combine") or not self.parts:
            return []

        def given() -> dict[str, Any]:
            parts = [(through_bytes(job), dataclasses.replace(found)) for job, found in self.parts]
            return {"parts": parts, "device": CPU, "rng": seeding.generator(SEED, "combine")}

        return [(sum(self.trial.sizes), twice(self._place("combine"), self.plugin.combine, given))]

    @property
    def calls(self) -> list[Call]:
        """All of them."""
        return [*self.captures, *(call for _, call in self.attacks), *(call for _, call in self.combined)]

    def _place(self, method: str) -> str:
        return f"{name_of(self.plugin)}.{method}"


def asked(plugin: Any, trial: Trial) -> Call:
    """What it has against the built model."""
    place = f"{name_of(plugin)}.objection_to"
    return twice(place, plugin.objection_to, lambda: {"model": trial.model, "situation": trial.situation})


def no_job(job: Any) -> str | None:
    """What it is instead of a job; None for a job."""
    if not isinstance(job, Job):
        return f"{type(job).__name__}, not a Job"
    if not isinstance(job.observations, tuple) or not all(isinstance(one, Observation) for one in job.observations):
        return "a job whose observations are no tuple of Observation"
    return None if job.observations else "a job of no observation, by which nothing can be attacked"


def through_bytes(job: Job) -> Any:
    """The job as an attack gets it: read back from its stored bytes. The exception, where it cannot be stored."""
    try:
        seen = tuple(observation_from(observation_bytes(one)) for one in job.observations)
        return Job(seen, json.loads(json.dumps(dict(job.notes), sort_keys=True)))
    except Exception as error:
        return error


def held(plugin: Any) -> dict[str, str]:
    """What an adversary could remember by: its fields, and what can be changed among its class's attributes."""
    shared = {
        f"{cls.__name__}.{name}": value
        for cls in type(plugin).__mro__
        for name, value in vars(cls).items()
        if isinstance(value, list | dict | set) and not name.startswith("__")
    }
    own = {one.name: getattr(plugin, one.name) for one in dataclasses.fields(plugin)}
    return flattened({**own, **shared})


def unscorable(found: Any, shape: tuple[int, ...], size: int) -> str | None:
    """Why an answer cannot be scored, in the words of `fedsim.answers`."""
    try:
        answers.check(found, shape, size)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _given(seen: Observation) -> dict[str, Any]:
    """What `capture` gets: frozen, as an adversary gets it, and its own."""
    tensors = {path: value.clone() for path, value in seen.tensors.items()}
    facts = json.loads(json.dumps(dict(seen.facts)))
    return {"seen": dataclasses.replace(seen, tensors=MappingProxyType(tensors), facts=MappingProxyType(facts))}
