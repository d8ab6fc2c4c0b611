"""Plugins that keep all that they are given. They work in an attack process as well, and import nothing of a test.
No test is in here.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fedsim import progress
from fedsim.adversaries.base import Derived, Job, Observation, Reconstruction, Situation

GOT: dict[str, list[Any]] = {}
"""By a spy's tag, what it was given in this process."""

MODELS: dict[str, list[Any]] = {}
"""The models that it was asked about before round 0, as they are now."""

GO_ON = signal.SIGUSR1
"""What a spy waits for whose memory is looked at."""


def keep(tag: str, what: Any) -> None:
    """Remember something for ever."""
    GOT.setdefault(tag, []).append(what)


@dataclass(frozen=True)
class Spy:
    """Keeps what comes to any of its methods. waits: in each attack, for a signal."""

    needs: ClassVar[frozenset[str]] = frozenset({"sizes"})
    powers: ClassVar[frozenset[str]] = frozenset()

    tag: str = ""
    waits: bool = False

    def objection(self, situation: Situation) -> None:
        keep(self.tag, situation)

    def objection_to(self, model: Any, situation: Situation) -> None:
        MODELS.setdefault(self.tag, []).append(model)

    def alter_model(self, round_: int, client: int, targets: Sequence[int], parameters: Any) -> Mapping[str, Any]:
        keep(self.tag, (round_, client, targets, dict(parameters)))
        return {name: value.clone() for name, value in parameters.items()}

    def alter_request(self, round_: int, client: int, targets: Any, stage: str, request: Any) -> Mapping[str, Any]:
        keep(self.tag, (round_, client, targets, stage, dict(request)))
        return dict(request)

    def capture(self, seen: Observation) -> Iterator[Job]:
        keep(self.tag, seen)
        yield Job((seen,), {"from": "capture"})

    def attack(self, job: Job, device: Any, rng: Any) -> Reconstruction:
        keep(self.tag, job)
        if self.waits:
            signal.pthread_sigmask(signal.SIG_BLOCK, [GO_ON])
            progress.report(1, 2, str(os.getpid()))
            signal.sigtimedwait([GO_ON], 20)
        return Reconstruction(None, torch.zeros(1, dtype=torch.int64), 0.0, 0)

    def combine(self, parts: Sequence[tuple[Job, Reconstruction]], device: Any, rng: Any) -> Reconstruction:
        given = [parts[place] for place in range(len(parts))]
        keep(self.tag, [job for job, _ in given])
        return given[0][1]


@dataclass(frozen=True)
class SpyingDerivation:
    """Keeps all that it is given, and derives nothing."""

    needs: ClassVar[frozenset[str]] = frozenset({"sizes"})
    powers: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()

    tag: str = ""

    def derive(self, seen: Sequence[Observation]) -> Derived:
        for one in seen:
            keep(self.tag, one)
        return Derived(())
