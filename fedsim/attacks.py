"""Run the jobs of adversaries, one after another, and score what comes back. A failing plugin fails alone."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedsim import seeding, truth
from fedsim.adversaries.base import Job, Observation, Reconstruction
from fedsim.adversaries.storage import JobStore
from fedsim.attack import Attack, clients_of
from fedsim.attack_lines import line_of
from fedsim.attackers.base import Attacker, Failure, Found
from fedsim.attackers.choosing import attacker_for
from fedsim.experiment import AdversaryEntry, Experiment
from fedsim.progress import Listener, Screen
from fedsim.report.formats import numbered
from fedsim.runs import RunFolder, append_line


def attacks_on(seen: Observation, entry: AdversaryEntry, store: JobStore, warn: Callable[[str], None]) -> list[Attack]:
    """What an adversary would attack of an observation, its jobs stored. A plugin's fault is a warning and ends
    nothing. Whose data an attack is after is what its job's last observation says.
    """
    try:
        return [_stored(job, entry, store) for job in list(entry.plugin.settings.capture(seen))]
    except Exception as error:
        whom = f"{numbered(list(clients_of(seen)), 'client')} in round {seen.round}"
        warn(f"adversary '{entry.id}': capture of {whom} failed: {type(error).__name__}: {error}")
        return []


def _stored(job: Job, entry: AdversaryEntry, store: JobStore) -> Attack:
    address, last = store.put(job, entry.plugin.describe(), entry.id), job.observations[-1]
    return Attack(entry, address, clients_of(last), (last.round,))


def run_attacks(
    attacks: Sequence[Attack],
    experiment: Experiment,
    folder: RunFolder,
    device: torch.device,
    screen: Screen,
    warn: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Run and score every job; a line of attacks.jsonl each, in the order of the experiment file.

    An attack draws from a generator that its job's content alone determines: the same job gives the same result in
    whatever company it runs, up to rounding where a plugin runs several jobs as one batch, and but for limits of time.
    Meanwhile the truth is not in the run's folder, and each adversary's attacks are in a process of their own.
    """
    with truth.apart(folder, warn) as place:
        return _Runner(experiment, folder, place, device, screen, warn).run(attacks)


@dataclass(frozen=True)
class _Answer:
    """What came of a job, and the wall time of its share."""

    found: Found
    seconds: float


@dataclass(frozen=True)
class _Runner:
    """Runs attacks on what a run captured. truth: where the truth is meanwhile."""

    experiment: Experiment
    folder: RunFolder
    truth: Path
    device: torch.device
    screen: Screen
    warn: Callable[[str], None]

    def run(self, attacks: Iterable[Attack]) -> list[dict[str, Any]]:
        """The lines of all attacks, adversary by adversary."""
        position = {entry.id: place for place, entry in enumerate(self.experiment.adversaries)}
        ordered = sorted(attacks, key=lambda one: (position.get(one.entry.id, 0), one.round, one.clients))
        lines = []
        for _, grouped in itertools.groupby(ordered, key=lambda one: one.entry.id):
            group = list(grouped)
            entry, store = group[0].entry, JobStore(self.folder.captures, self.folder.jobs)
            runtime = self.experiment.runtime
            with closing(attacker_for(entry, store, self.device, runtime, self.warn)) as attacker:
                given = self._answers(group, attacker)
                if hasattr(entry.plugin.settings, "combine"):
                    given = self._combined(list(given), attacker)
                lines += [self._noted(attack, answer) for attack, answer in given]
        return lines

    def _noted(self, attack: Attack, answer: _Answer) -> dict[str, Any]:
        """Score an answer, and say and write down what came of it."""
        line = line_of(attack, answer.found, answer.seconds, self.experiment, self.folder, self.truth)
        failed = line["status"] == "failed"
        self.screen.attack(attack.name, 1, 1, "failed" if failed else f"objective {line['objective']:.4g}")
        if failed:
            self.warn(f"adversary '{attack.title}' failed on {attack.whom}: {line['error']}")
        append_line(self.folder.attacks, line)
        return line

    def _answers(self, group: Sequence[Attack], attacker: Attacker) -> Iterator[tuple[Attack, _Answer]]:
        """Run the attacks of one adversary: one by one, or as one batch where its plugin says that this is better."""
        together: dict[str, _Answer] = {}
        if len(group) > 1 and hasattr(group[0].entry.plugin.settings, "batches"):
            together = self._together(group, attacker)
        for attack in group:
            yield attack, together.get(attack.job) or self._alone(attack, attacker)

    def _alone(self, attack: Attack, attacker: Attacker) -> _Answer:
        self.screen.attack(attack.name, 0, 1, "")
        attacker.ready()
        start = time.perf_counter()
        found = attacker.attack(attack.job, self._seed(attack.job), self._teller(attack.name))
        return _Answer(found, time.perf_counter() - start)

    def _together(self, group: Sequence[Attack], attacker: Attacker) -> dict[str, _Answer]:
        """The answers by job; nothing if the plugin would rather have them one by one, or fails on the batch."""
        name = f"{group[0].entry.id}, {len(group)} jobs at once"
        found: bool | list[Found] | Failure = attacker.batches()
        if not found:
            return {}
        start = time.perf_counter()
        if not isinstance(found, Failure):
            self.screen.attack(name, 0, 1, "")
            jobs = [attack.job for attack in group]
            found = attacker.attack_many(jobs, [self._seed(job) for job in jobs], self._teller(name))
        if isinstance(found, Failure):  # one by one shows which of them it is
            self.warn(
                f"adversary '{group[0].entry.id}' failed on {len(group)} jobs at once and runs them one by one: {found}"
            )
            return {}
        assert isinstance(found, list)
        self.screen.attack(name, 1, 1, "")
        seconds = (time.perf_counter() - start) / len(group)
        return {attack.job: _Answer(one, seconds) for attack, one in zip(group, found, strict=True)}

    def _combined(
        self, given: Sequence[tuple[Attack, _Answer]], attacker: Attacker
    ) -> Iterator[tuple[Attack, _Answer]]:
        """One answer for all jobs on the same clients, put together by the plugin, or several by name, which stands
        behind the adversary's then. Jobs that failed are left out.
        """
        by_clients = sorted(given, key=lambda one: one[0].clients)
        for _, grouped in itertools.groupby(by_clients, key=lambda one: one[0].clients):
            group = sorted(grouped, key=lambda one: one[0].rounds)
            address = hashlib.sha256("".join(attack.job for attack, _ in group).encode()).hexdigest()
            rounds = tuple(dict.fromkeys(round_ for attack, _ in group for round_ in attack.rounds))
            whole = replace(group[0][0], job=address, rounds=rounds, combined=True)
            parts: list[tuple[str, Reconstruction]] = []
            failures: list[Failure] = []
            for attack, answer in group:
                if isinstance(answer.found, Failure):
                    failures.append(answer.found)
                    self.warn(
                        f"adversary '{attack.entry.id}' failed on {attack.whom}, which is left out: {answer.found}"
                    )
                else:
                    parts.append((attack.job, answer.found))
            self.screen.attack(whole.name, 0, 1, "")
            attacker.ready()
            start = time.perf_counter()
            seed, tell = self._seed(address), self._teller(whole.name)
            found = attacker.combine(parts, seed, tell) if parts else failures[0]
            seconds = time.perf_counter() - start + sum(answer.seconds for _, answer in group)
            for name, one in {"": found}.items() if isinstance(found, Failure) else found.items():
                yield replace(whole, answer=name), _Answer(_without(len(failures), one), seconds)

    def _seed(self, address: str) -> int:
        return seeding.derive(self.experiment.seed, "attack", address)

    def _teller(self, name: str) -> Listener:
        """Shows how far an attack is. That it has ended is for whoever started it to say, with what came of it."""

        def tell(done: int, total: int, note: str) -> None:
            if done < total:
                self.screen.attack(name, done, total, note)

        return tell


def _without(failed: int, found: Found) -> Found:
    """An answer that lacks jobs says how many."""
    if failed and isinstance(found, Reconstruction) and found.status == "done" and isinstance(found.notes, Mapping):
        return replace(found, status="partial", notes={**found.notes, "jobs that failed": failed})
    return found
