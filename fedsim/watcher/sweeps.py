"""What there is of a sweep so far."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from fedsim.pace import Pace
from fedsim.report.values import Table, table, tables, text
from fedsim.watcher.alive import Alive
from fedsim.watcher.runs import BROKEN, RUNNING, RunSeen
from fedsim.watcher.tail import Changing

DONE, FAILED, WAITING = "done", "failed", "waiting"


class SweepSeen:
    """A sweep as far as its files tell it. `refresh` looks at every run that has not ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.resolve().name
        self.status = RUNNING
        self.states: Counter[str] = Counter()
        """Cells by how they stand: done, running, failed, waiting."""
        self.working: list[RunSeen] = []
        """The runs, trainings among them, that go on now."""
        self.failures: dict[str, str] = {}
        """By cell, why it failed."""
        self._record, self._alive = Changing(path / "sweep.json"), Alive(path)
        self._manifests: dict[str, Changing] = {}
        self._runs: dict[str, RunSeen] = {}
        self._pace = Pace()

    def refresh(self) -> bool:
        """Look again. Whether anything is new."""
        changed = self._record.refresh()
        cells = tables(self._record.content.get("cells"))
        trainings = {text(one.get("folder")): one for one in (table(cell.get("training")) for cell in cells) if one}
        states = {text(cell.get("folder")): self._state(cell) for cell in cells}
        before = {folder: self._state(one) for folder, one in trainings.items()}
        running = [folder for folder, state in {**before, **states}.items() if state == RUNNING]
        self._runs = {folder: self._runs.get(folder) or RunSeen(self.path / folder) for folder in running}
        self.working = list(self._runs.values())
        refreshed = [run.refresh() for run in self.working]
        changed |= any(refreshed)
        counts = Counter(states.values())
        status = self._status()
        changed |= counts != self.states or status != self.status
        self.states, self.status = counts, status
        self.failures = {
            Path(folder).name: text(self._manifests[folder].content.get("error")) or "no reason recorded"
            for folder, state in {**before, **states}.items()
            if state == FAILED
        }
        self._pace.step(counts[DONE] + counts[FAILED], self.total)
        return changed

    @property
    def total(self) -> int:
        """How many cells there are."""
        return sum(self.states.values())

    @property
    def over(self) -> bool:
        """Whether there will be nothing more."""
        return self.status != RUNNING

    @property
    def left(self) -> float | None:
        """Seconds that are left, as fast as cells ended while somebody looked on."""
        return self._pace.left()

    def as_json(self) -> dict[str, Any]:
        """All of it as data."""
        return {
            "sweep": str(self.path),
            "status": self.status,
            "cells": self.total,
            **{state: self.states[state] for state in (DONE, RUNNING, FAILED, WAITING)},
            "left_seconds": None if self.left is None else round(self.left, 1),
            "working": [run.as_json() for run in self.working],
            "failures": self.failures,
        }

    def _state(self, entry: Table) -> str:
        """As `fedsim.sweeps.folder.state` has it. A run that has ended is not read again."""
        folder = text(entry.get("folder"))
        manifest = self._manifests.setdefault(folder, Changing(self.path / folder / "manifest.json"))
        manifest.refresh()
        found = manifest.content
        if not found or found.get("content_sha256") != entry.get("hash"):
            return WAITING
        state = text(found.get("status"))
        if state == RUNNING and self.status != RUNNING:  # nobody is at work: it was broken off
            return WAITING
        return state if state in (DONE, RUNNING, FAILED) else WAITING

    def _status(self) -> str:
        said = text(self._record.content.get("status")) or RUNNING
        if said != RUNNING or not self._alive.gone():
            return said
        self._record.refresh()
        said = text(self._record.content.get("status")) or RUNNING
        return BROKEN if said == RUNNING else said
