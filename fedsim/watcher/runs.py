"""What there is of a run so far."""

from __future__ import annotations

import time
import tomllib
from collections import deque
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from fedsim.pace import Pace
from fedsim.report.reading import Attack, attack_of
from fedsim.report.rounds import Round, round_of
from fedsim.report.values import Table, integer, real, strings, table, tables, text
from fedsim.runs import RunFolder, attack_key
from fedsim.watcher.alive import Alive
from fedsim.watcher.tail import Changing, Tail

LATEST = 40
"""Rounds and attacks that are kept, however many there are."""

BROKEN = "broken off"
RUNNING = "running"
STARTING = "starting"


class RunSeen:
    """A run as far as its files tell it. `refresh` reads what is new."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.resolve().name
        self.rounds = 0
        """Planned; 0 if that is not known."""
        self.attacking = False
        """Whether it has adversaries."""
        self.status = STARTING
        self._folder = RunFolder(path)
        self._manifest, self._alive = Changing(self._folder.manifest), Alive(path)
        # In this order: a time is written before the line that it is of.
        self._tails = {file: Tail(file) for file in (self._folder.rounds, self._folder.attacks, self._folder.timings)}
        self._jobs: tuple[int, int] = (0, 0)
        self._forget()

    def refresh(self) -> bool:
        """Read what is new. Whether there was anything."""
        if not self.rounds:  # it is written a little after the folder is made
            self._read_experiment()
        changed = self._manifest.refresh()
        found = {file: tail.new() for file, tail in self._tails.items()}
        if any(again for _, again in found.values()):  # cut back, to a checkpoint
            self._forget()
            self._tails = {file: Tail(file) for file in self._tails}
            found = {file: tail.new() for file, tail in self._tails.items()}
            changed = True
        rounds, attacks, timings = (found[file][0] for file in self._tails)
        self._note_timings(timings)
        for line in rounds:
            self._note_round(line)
        for line in attacks:
            self._note_attack(line)
        self._count_jobs()
        if self.done is not None:
            self._pace.step(self.done, self.rounds)
            if self.done >= self.rounds:
                self._attack_pace.step(self.attacked, self.jobs)
        status = self._status()
        changed = bool(changed or rounds or attacks or status != self.status)
        self.status = status
        return changed

    @property
    def over(self) -> bool:
        """Whether there will be nothing more."""
        return self.status not in (RUNNING, STARTING)

    @property
    def done(self) -> int | None:
        """The last round that is over; 0 is the model before any."""
        return self.recent[-1].round if self.recent else None

    @property
    def left(self) -> float | None:
        """Seconds that are left of training or, where that is over, of the attacks, as far as that can be told."""
        if self.done is None or not self.rounds:
            return None
        training = self.done < self.rounds
        pace, lately = (self._pace, self._lately) if training else (self._attack_pace, self._attack_lately)
        left = pace.left()
        if left is None and lately:  # until something was seen to end
            steps = self.rounds - self.done if training else self.jobs - self.attacked
            left = max(fmean(lately) * steps - (self.age or 0.0), 0.0)
        return left

    @property
    def age(self) -> float | None:
        """Seconds since a round or an attack ended last."""
        times = []
        for file in (self._folder.rounds, self._folder.attacks):
            try:
                times.append(file.stat().st_mtime)
            except OSError:
                continue
        return max(time.time() - max(times), 0.0) if times else None

    @property
    def jobs(self) -> int:
        """Attacks that were asked for so far."""
        return max(self._jobs[1], self.attacked)

    @property
    def error(self) -> str:
        """What ended the run, if anything did."""
        return text(self._manifest.content.get("error"))

    @property
    def warnings(self) -> list[str]:
        """What went wrong so far, the latest last."""
        return [*self._troubles, *strings(self._manifest.content.get("warnings"))]

    def as_json(self) -> dict[str, Any]:
        """All of it as data."""
        last = self.recent[-1] if self.recent else Round(0)
        best = self.attacks[-1] if self.attacks else None
        return {
            "run": str(self.path),
            "status": self.status,
            "round": self.done,
            "rounds": self.rounds or None,
            "left_seconds": None if self.left is None else round(self.left, 1),
            **{key: getattr(last, key) for key in ("train_loss", "test_loss", "test_accuracy", "epsilon")},
            "dropouts": self.dropouts,
            "skipped": self.skipped,
            "attacks": self.attacked,
            "jobs": self.jobs,
            "failed": self.failed,
            "last_attack": best
            and {key: getattr(best, key) for key in ("adversary", "client", "round", "psnr", "ssim", "lpips", "error")},
            "warnings": self.warnings,
            "error": self.error or None,
            "age_seconds": None if self.age is None else round(self.age, 1),
        }

    def _forget(self) -> None:
        self.recent: deque[Round] = deque(maxlen=LATEST)
        self.attacks: deque[Attack] = deque(maxlen=LATEST)
        self.attacked = self.failed = self.dropouts = self.skipped = 0
        self._troubles: deque[str] = deque(maxlen=LATEST)
        self._seconds: dict[tuple[Any, ...], float] = {}
        self._lately: deque[float] = deque(maxlen=LATEST)
        self._attack_lately: deque[float] = deque(maxlen=LATEST)
        self._pace, self._attack_pace = Pace(), Pace()

    def _read_experiment(self) -> None:
        try:
            experiment: Table = tomllib.loads(self._folder.experiment.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            experiment = {}
        self.rounds = integer(experiment.get("rounds")) or 0
        self.attacking = bool(tables(experiment.get("adversaries")))

    def _note_timings(self, lines: list[Table]) -> None:
        for line in lines:
            seconds = real(line.get("seconds"))
            if seconds is not None:
                self._seconds[_key(line)] = seconds
                if "adversary" in line:
                    self._attack_lately.append(seconds)
                elif line.get("round"):  # not the first, which measures the model before any training
                    self._lately.append(seconds)

    def _note_round(self, line: Table) -> None:
        record = round_of(line)
        if record is None:
            return
        self.recent.append(replace(record, seconds=self._seconds.pop(_key(line), record.seconds)))
        self.dropouts += len(record.dropouts)
        if record.skipped:
            self.skipped += 1
            self._troubles.append(f"round {record.round} was skipped: {record.skipped}")

    def _note_attack(self, line: Table) -> None:
        attack = attack_of(line)
        seconds = self._seconds.pop(_key(line), attack.seconds)
        self.attacks.append(replace(attack, seconds=seconds, history=(), per_image={}))
        self.attacked += 1
        if attack.failed:
            self.failed += 1
            self._troubles.append(f"adversary '{attack.adversary}' failed on round {attack.when}: {attack.error}")

    def _count_jobs(self) -> None:
        """As often as their folder has changed."""
        try:
            changed = self._folder.jobs.stat().st_mtime_ns
            if changed != self._jobs[0]:
                self._jobs = (changed, sum(name.suffix == ".json" for name in self._folder.jobs.iterdir()))
        except OSError:
            return

    def _status(self) -> str:
        said = text(table(self._manifest.content).get("status")) or STARTING
        if said not in (RUNNING, STARTING) or not self._alive.gone():
            return said
        # It may have ended just between the two looks.
        self._manifest.refresh()
        said = text(self._manifest.content.get("status")) or STARTING
        return BROKEN if said in (RUNNING, STARTING) else said


def _key(line: Table) -> tuple[Any, ...]:
    """By what a line of timings.jsonl belongs to one of the other two."""
    if "adversary" not in line:
        return (integer(line.get("round")),)
    return tuple(map(str, attack_key(line).values()))
