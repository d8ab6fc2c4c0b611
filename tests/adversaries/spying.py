"""Adversaries that keep what they are shown, and bytes to look for in it. No test is in here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsim.adversaries.base import Job, Observation, Reconstruction
from fedsim.experiment import AdversaryEntry, Component, Experiment
from fedsim.runs import RunFolder
from fedsim.simulation import simulate


class Silent:
    def rounds(self, *_: Any) -> None: ...
    def attack(self, *_: Any) -> None: ...
    def warn(self, *_: Any) -> None: ...


@dataclass(frozen=True)
class Collector:
    """Keeps what it is shown."""

    needs = frozenset({"sizes"})
    powers: ClassVar[frozenset[str]] = frozenset()
    seen: Any = None

    def capture(self, seen: Observation) -> Iterator[Job]:
        self.seen.append(seen)
        yield from ()

    def attack(self, job: Any, device: Any, rng: Any) -> Any: ...


@dataclass(frozen=True)
class Guesser:
    """Makes a job of what it is shown, and guesses that every label is 0."""

    needs: ClassVar[frozenset[str]] = frozenset({"num_examples"})
    powers: ClassVar[frozenset[str]] = frozenset()

    def capture(self, seen: Observation) -> Iterator[Job]:
        yield Job((seen,))

    def attack(self, job: Job, device: Any, rng: Any) -> Reconstruction:
        count = job.observations[0].facts["num_examples"]
        return Reconstruction(None, torch.zeros(count, dtype=torch.int64), 0.0, 0)


class Kept(list):  # type: ignore[type-arg]
    """A list that can be a setting of a frozen dataclass."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


def watch(experiment: Experiment, folder: Path, **entry: Any) -> list[Observation]:
    kept = Kept()
    values: dict[str, Any] = {"vantage": "link", "targets": (0,), "rounds": (1,), **entry}
    made = AdversaryEntry(id="spy", plugin=Component("collector", Collector(kept)), **values)
    simulate(replace(experiment, adversaries=(made,)), RunFolder.create(folder), Silent())
    return kept


def liveliest(values: Tensor) -> Tensor:
    """Four neighbours with many different non-zero values, so that they are found nowhere by chance."""
    rows = values.flatten().unfold(0, 4, 1)
    distinct = (rows != 0).sum(1).double() + rows.double().std(1)
    return rows[distinct.argmax()]


def canary(values: Tensor) -> bytes:
    return values.contiguous().numpy().tobytes()
