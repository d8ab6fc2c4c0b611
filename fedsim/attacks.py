"""Run the jobs of adversaries, one after another, and score what comes back. A failing plugin fails alone."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedsim import seeding, truth
from fedsim.adversaries.base import Job, Observation, Reconstruction
from fedsim.adversaries.storage import JobStore
from fedsim.attack import Attack, clients_of
from fedsim.attack_lines import line_of
from fedsim.attackers.base import Attacker, Expected, Failure, Found
from fedsim.attackers.choosing import attacker_for
from fedsim.experiment import AdversaryEntry, Experiment
from fedsim.failpoints import reach
from fedsim.progress import Listener, Screen
from fedsim.report.formats import numbered
from fedsim.runs import RunFolder, append_attack, read_lines

if TYPE_CHECKING:
    from fedsim.cluster.attacks import AttackTasks


def attacks_on(seen: Observation, entry: AdversaryEntry, store: JobStore, warn: Callable[[str], None]) -> list[Attack]:
    """What an adversary would attack of an observation, its jobs stored. A plugin's fault is a warning and ends
    nothing. Whose data an attack is after is what its job's last observation says.
    """
    try:
        jobs = list(entry.plugin.settings.capture(seen))
    except Exception as error:
        _say_lost(entry, seen, error, warn)
        return []
    try:
        return [_stored(job, entry, store) for job in jobs]
    except OSError:  # a full disk is not the plugin's fault, and ends the run before anything is lost
        raise
    except Exception as error:
        _say_lost(entry, seen, error, warn)
        return []


def _say_lost(entry: AdversaryEntry, seen: Observation, error: Exception, warn: Callable[[str], None]) -> None:
    whom = f"{numbered(list(clients_of(seen)), 'client')} in round {seen.round}"
    warn(f"adversary '{entry.id}': capture of {whom} failed: {type(error).__name__}: {error}")


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
    tasks: AttackTasks | None = None,
) -> list[dict[str, Any]]:
    """Run and score every job; a line of attacks.jsonl each, in the order of the experiment file.

    An attack draws from a generator that its job's content alone determines: the same job gives the same result in
    whatever company it runs, up to rounding where a plugin runs several jobs as one batch, and but for limits of time.
    Meanwhile the truth is not in the run's folder, and each adversary's attacks are in a process of their own.
    tasks: of a cluster, where they run there; else they run here, one after another.
    """
    with closing(Attacks(experiment, folder, device, screen, warn, tasks)) as runner:
        return runner.run(attacks)


@dataclass(frozen=True)
class _Answer:
    """What came of a job, and the wall time of its share."""

    found: Found
    seconds: float


class Attacks:
    """Runs attacks on what a run captured."""

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        device: torch.device,
        screen: Screen,
        warn: Callable[[str], None],
        tasks: AttackTasks | None = None,
        on_line: Callable[[Mapping[str, Any]], None] = lambda line: None,
    ) -> None:
        """tasks: of a cluster, where attacks run there; else they run here, one after another."""
        self.experiment, self.folder, self.device = experiment, folder, device
        self.screen, self.warn, self.tasks, self.on_line = screen, warn, tasks, on_line
        self._store = JobStore(folder.captures, folder.jobs)
        self._attackers: dict[str, Attacker] = {}
        self._expected: set[str] = set()

    def expect(self, attacks: Iterable[Attack]) -> None:
        """Let those attacks begin whose attacker can work ahead; `run` will ask for them."""
        done = {line.get("job") for line in read_lines(self.folder.attacks)}  # of a run that goes on
        for _, whole in _grouped(attacks, self.experiment):
            group = [attack for attack in whole if attack.job not in done]
            if not group:
                continue
            attacker = self._attacker(group[0].entry)
            if attacker.expect(()):
                attacker.expect([self._work(attack) for attack in group])
                self._expected.update(attack.job for attack in group)

    def look(self) -> None:
        """Take what has ended of the attacks that were expected, and show how far the others are."""
        if self.tasks is not None:
            self.tasks.look()

    def describe(self) -> dict[str, Any]:
        """How attacks fared on a cluster, as JSON data for the manifest."""
        return {} if self.tasks is None else {"attacks_retried": self.tasks.retries}

    def run(
        self, attacks: Iterable[Attack], truth_at: Path | None = None, done: Sequence[Mapping[str, Any]] = ()
    ) -> list[dict[str, Any]]:
        """The lines of all attacks, adversary by adversary.

        truth_at: where the truth is, if that is not the run's folder, from which it is moved for so long. done: lines
        of attacks.jsonl that an earlier try has written; these are not run again.
        """
        place: AbstractContextManager[Path] = nullcontext(truth_at) if truth_at else nullcontext(self.folder.truth)
        if truth_at in (None, self.folder.truth):
            place = truth.apart(self.folder, self.warn)
        with place as found:
            groups = _grouped(attacks, self.experiment)
            done = self._trusted(groups, done)
            left = _not_done(groups, done)
            together = {name: self._begin(group, _lines_of(done, name)) for name, group in groups if name in left}
            lines: list[dict[str, Any]] = []
            for name, group in groups:
                had = [dict(line) for line in _lines_of(done, name)]
                lines += had
                if name in left:
                    lines += self._of_one(group, together[name], found, len(had))
            return lines

    def close(self) -> None:
        """End whatever still runs."""
        for attacker in self._attackers.values():
            attacker.close()
        self._attackers.clear()

    def _attacker(self, entry: AdversaryEntry) -> Attacker:
        if entry.id not in self._attackers:
            made = attacker_for(entry, self._store, self.device, self.experiment.runtime, self.warn, self.tasks)
            self._attackers[entry.id] = made
        return self._attackers[entry.id]

    def _trusted(
        self, groups: Sequence[tuple[str, Sequence[Attack]]], done: Sequence[Mapping[str, Any]]
    ) -> Sequence[Mapping[str, Any]]:
        """Lines that an earlier try has written, if they are the first of those that these attacks come to; else none,
        and they are written anew.
        """
        jobs = {name: [attack.job for attack in group] for name, group in groups}
        order = [name for name, _ in groups]
        names = [line.get("entry") for line in done]
        fit = names == sorted(names, key=lambda name: order.index(name) if name in order else -1)
        for name in set(names):
            own = [line.get("job") for line in _lines_of(done, str(name))]
            combined = any(line.get("combined") for line in _lines_of(done, str(name)))
            fit = fit and name in jobs and (combined or own == jobs[str(name)][: len(own)])
        if not fit:
            self.warn(f"{self.folder.attacks.name} holds other lines than this run writes: its attacks begin anew")
            self.folder.attacks.unlink()
            return ()
        return done

    def _begin(self, group: Sequence[Attack], had: Sequence[Mapping[str, Any]]) -> bool:
        """Let an adversary's attacks begin, if its attacker can work ahead; whether they will run as one batch then.
        had: lines of the first of them, which need not run again unless their answers are put together.
        """
        attacker = self._attacker(group[0].entry)
        combines = hasattr(group[0].entry.plugin.settings, "combine")
        if not attacker.expect(()) or {attack.job for attack in group} <= self._expected:
            return False
        if self._wants_all(group, attacker):
            attacker.expect([self._work(attack) for attack in group], self._teller(_many(group)))
            return True
        todo = group if combines else group[len(had) :]
        attacker.expect([self._work(attack) for attack in todo if attack.job not in self._expected])
        return False

    def _of_one(self, group: Sequence[Attack], together: bool, place: Path, had: int) -> Iterator[dict[str, Any]]:
        """The lines of one adversary, but for the first so many, which are there."""
        combines = hasattr(group[0].entry.plugin.settings, "combine")
        attacker = self._attacker(group[0].entry)
        with closing(attacker):
            if not together and not attacker.expect(()):
                together = self._wants_all(group, attacker)
            # What runs as one batch is rounded as one batch, whatever of it is there already.
            given = self._answers(group if combines or together else group[had:], attacker, together)
            if combines:
                given = self._combined(list(given), attacker)
            for attack, answer in itertools.islice(given, had if combines or together else 0, None):
                reach("attack.found")
                yield self._noted(attack, answer, place)
        del self._attackers[group[0].entry.id]

    def _noted(self, attack: Attack, answer: _Answer, place: Path) -> dict[str, Any]:
        """Score an answer, and say and write down what came of it."""
        line = line_of(attack, answer.found, answer.seconds, self.experiment, self.folder, place)
        failed = line["status"] == "failed"
        self.screen.attack(attack.name, 1, 1, "failed" if failed else f"objective {line['objective']:.4g}")
        if failed:
            self.warn(f"adversary '{attack.title}' failed on {attack.whom}: {line['error']}")
        append_attack(self.folder, line)
        self.on_line(line)
        reach("attack.line")
        return line

    def _answers(self, group: Sequence[Attack], attacker: Attacker, together: bool) -> Iterator[tuple[Attack, _Answer]]:
        """Run the attacks of one adversary: one by one, or as one batch where its plugin says that this is better."""
        answers = self._together(group, attacker) if together else {}
        for attack in group:
            yield attack, answers.get(attack.job) or self._alone(attack, attacker)

    def _alone(self, attack: Attack, attacker: Attacker) -> _Answer:
        if not attacker.expect(()):  # one that works ahead says itself when it begins
            self.screen.attack(attack.name, 0, 1, "")
        attacker.ready()
        start = time.perf_counter()
        found = attacker.attack(attack.job, self._seed(attack.job), self._teller(attack.name))
        return _Answer(found, _or(attacker.took(attack.job), time.perf_counter() - start))

    def _wants_all(self, group: Sequence[Attack], attacker: Attacker) -> bool:
        """Whether the plugin would rather have these jobs at once."""
        if len(group) < 2 or not hasattr(group[0].entry.plugin.settings, "batches"):
            return False
        found = attacker.batches()
        if isinstance(found, Failure):  # one by one shows which of them it is
            self._say_one_by_one(group, found)
            return False
        return found

    def _together(self, group: Sequence[Attack], attacker: Attacker) -> dict[str, _Answer]:
        """The answers by job; nothing if the plugin fails on the batch."""
        name = _many(group)
        start = time.perf_counter()
        self.screen.attack(name, 0, 1, "")
        jobs = [attack.job for attack in group]
        found = attacker.attack_many(jobs, [self._seed(job) for job in jobs], self._teller(name))
        if isinstance(found, Failure):
            self._say_one_by_one(group, found)
            return {}
        self.screen.attack(name, 1, 1, "")
        seconds = (time.perf_counter() - start) / len(group)
        return {job: _Answer(one, _or(attacker.took(job), seconds)) for job, one in zip(jobs, found, strict=True)}

    def _say_one_by_one(self, group: Sequence[Attack], why: Failure) -> None:
        self.warn(
            f"adversary '{group[0].entry.id}' failed on {len(group)} jobs at once and runs them one by one: {why}"
        )

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
            own = _or(attacker.took() if parts else None, time.perf_counter() - start)
            seconds = own + sum(answer.seconds for _, answer in group)
            for name, one in {"": found}.items() if isinstance(found, Failure) else found.items():
                yield replace(whole, answer=name), _Answer(_without(len(failures), one), seconds)

    def _work(self, attack: Attack) -> Expected:
        return Expected(attack.job, self._seed(attack.job), self._teller(attack.name))

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


def _grouped(attacks: Iterable[Attack], experiment: Experiment) -> list[tuple[str, list[Attack]]]:
    """Attacks by adversary, in the order of the file; each one's by round and clients."""
    position = {entry.id: place for place, entry in enumerate(experiment.adversaries)}
    ordered = sorted(attacks, key=lambda one: (position.get(one.entry.id, 0), one.round, one.clients))
    return [(name, list(group)) for name, group in itertools.groupby(ordered, key=lambda one: one.entry.id)]


def _not_done(groups: Sequence[tuple[str, Sequence[Attack]]], done: Sequence[Mapping[str, Any]]) -> set[str]:
    """The adversaries of which lines are still to be written. Who comes before another that has lines is done."""
    begun = [place for place, (name, _) in enumerate(groups) if _lines_of(done, name)]
    left = {name for name, _ in groups[max(begun, default=0) :]}
    if begun:
        name, group = groups[begun[-1]]
        combines = hasattr(group[0].entry.plugin.settings, "combine")
        if not combines and len(group) == len(_lines_of(done, name)):
            left.discard(name)
    return left


def _lines_of(done: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return [line for line in done if line.get("entry") == name]


def _many(group: Sequence[Attack]) -> str:
    return f"{group[0].entry.id}, {len(group)} jobs at once"


def _or(known: float | None, measured: float) -> float:
    return measured if known is None else known
