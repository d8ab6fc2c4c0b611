"""Attacks on a Ray cluster: many at once, each in a process of its adversary's own, wherever there is room."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.adversaries.base import Reconstruction
from fedsim.adversaries.storage import JobStore, observations_of
from fedsim.attackers import wire
from fedsim.attackers.base import Expected, Failure, Found
from fedsim.attackers.hiring import Role
from fedsim.attackers.process import nobody
from fedsim.cluster.attack_worker import Done, Work
from fedsim.cluster.attacks import AttackTasks, Held, Ticket
from fedsim.errors import FedsimError
from fedsim.progress import Listener


@dataclass(frozen=True)
class _Batch:
    """Jobs that run together."""

    jobs: list[str]
    seeds: list[int]
    ticket: Ticket | Failure


class _Sum:
    """Hears several pieces of work, and tells how far they are taken together."""

    def __init__(self, tell: Listener) -> None:
        self._tell = tell
        self._heard: dict[int, tuple[int, int]] = {}

    def of(self, place: int) -> Listener:
        """Who hears one of them."""

        def hear(done: int, total: int, note: str) -> None:
            self._heard[place] = (done, total)
            heard = self._heard.values()
            self._tell(sum(one[0] for one in heard), sum(one[1] for one in heard), note)

        return hear


class RayAttacker:
    """Hands the work of one adversary in as tasks. adversary: its id, for messages. role: what its processes are to be.
    keep: hold what its jobs are made of in the cluster until the end, since the plugin will put their answers together.
    """

    def __init__(self, adversary: str, role: Role, store: JobStore, tasks: AttackTasks, keep: bool = False) -> None:
        self._role, self._store, self._tasks, self._keep = role, store, tasks, keep
        self._whose = f"{adversary} {uuid.uuid4().hex}"
        self._name = adversary
        self._expected: dict[tuple[str, int], Ticket | Failure] = {}
        self._together: dict[tuple[str, ...], list[_Batch]] = {}
        self._kept: dict[str, Held] = {}
        self._took: dict[str, float] = {}
        self._open: set[Ticket] = set()

    def ready(self) -> None:
        """Processes start where and when they are needed; that time is not counted."""

    def batches(self) -> bool | Failure:
        """See `Attacker`."""
        done = self._done(self._submit({"do": "batches"}, (), nobody))
        return done.said if isinstance(done.said, Failure) else bool(done.said.header.get("yes"))

    def expect(self, works: Sequence[Expected], together: Listener | None = None) -> bool:
        """Hands them all in."""
        if together is not None:
            jobs = tuple(one.job for one in works)
            self._together[jobs] = self._split(jobs, [one.seed for one in works], together)
            return True
        for one in works:
            if (one.job, one.seed) not in self._expected:
                self._expected[one.job, one.seed] = self._alone(one.job, one.seed, one.tell)
        return True

    def attack(self, job: str, seed: int, tell: Listener) -> Found:
        """See `Attacker`."""
        ticket = self._expected.pop((job, seed), None) or self._alone(job, seed, tell)
        return self._answered(job, ticket)

    def attack_many(self, jobs: Sequence[str], seeds: Sequence[int], tell: Listener) -> list[Found] | Failure:
        """See `Attacker`. As many batches as the cluster has room for on its GPUs; where one of several fails, its jobs
        are run one by one.
        """
        batches = self._together.pop(tuple(jobs), None) or self._split(jobs, seeds, tell)
        found: dict[str, Found] = {}
        for batch in batches:
            done = self._done(batch.ticket)
            self._took |= dict.fromkeys(batch.jobs, done.seconds / len(batch.jobs))
            names = [str(place) for place in range(len(batch.jobs))]
            answers = _answers(done, names)
            if not isinstance(answers, Failure):
                found |= zip(batch.jobs, answers.values(), strict=True)
            elif len(batches) == 1:
                return answers
            else:
                what = f"failed on {len(batch.jobs)} jobs at once and runs them one by one"
                self._tasks.warn(f"adversary '{self._name}' {what}: {answers}")
                alone = [self._alone(*one, nobody) for one in zip(batch.jobs, batch.seeds, strict=True)]
                found |= {job: self._answered(job, one) for job, one in zip(batch.jobs, alone, strict=True)}
        return [found[job] for job in jobs]

    def combine(
        self, parts: Sequence[tuple[str, Reconstruction]], seed: int, tell: Listener
    ) -> Mapping[str, Found] | Failure:
        """See `Attacker`."""
        jobs = [job for job, _ in parts]
        answers = tuple(wire.packed({"": found}) for _, found in parts)
        done = self._done(self._submit({"do": "combine", "parts": jobs, "seed": seed}, jobs, tell, answers))
        self._took[""] = done.seconds
        return _answers(done)

    def took(self, job: str = "") -> float | None:
        """As long as its process worked on it."""
        return self._took.get(job)

    def close(self) -> None:
        """End what is under way, and let go of what was kept for this adversary."""
        self._tasks.cancel(self._open)
        self._open.clear()
        self._expected.clear()
        self._together.clear()
        self._kept.clear()

    def _split(self, jobs: Sequence[str], seeds: Sequence[int], tell: Listener) -> list[_Batch]:
        """Jobs in batches of about one size, each handed in."""
        count = min(self._tasks.batches, len(jobs))
        edges = [len(jobs) * place // count for place in range(count + 1)]
        sums = _Sum(tell)
        batches = []
        for place, (first, last) in enumerate(itertools.pairwise(edges)):
            own, drawn = list(jobs[first:last]), list(seeds[first:last])
            words = {"do": "attack_many", "jobs": own, "seeds": drawn}
            batches.append(_Batch(own, drawn, self._submit(words, own, sums.of(place))))
        return batches

    def _alone(self, job: str, seed: int, tell: Listener) -> Ticket | Failure:
        return self._submit({"do": "attack", "job": job, "seed": seed}, [job], tell)

    def _submit(
        self, words: Mapping[str, Any], jobs: Sequence[str], tell: Listener, answers: tuple[wire.Message, ...] = ()
    ) -> Ticket | Failure:
        """Hand in a piece of work with all that it needs; or why that cannot be read."""
        try:
            whole = {job: self._store.read("job", job) for job in jobs}
            held = {address: self._held(address) for data in whole.values() for address in observations_of(data)}
        except FedsimError as error:
            return Failure.of(error)
        if self._keep:
            self._kept |= held
        ticket = self._tasks.submit(Work("", self._whose, self._role, words, whole, {}, answers), held, tell)
        self._open.add(ticket)
        return ticket

    def _held(self, address: str) -> Held:
        return self._tasks.hold(address, lambda: self._store.read("observation", address))

    def _done(self, ticket: Ticket | Failure) -> Done:
        if isinstance(ticket, Failure):
            return Done(ticket)
        done = self._tasks.wait(ticket)
        self._open.discard(ticket)
        return done

    def _answered(self, job: str, ticket: Ticket | Failure) -> Found:
        done = self._done(ticket)
        self._took[job] = done.seconds
        found = _answers(done, [""])
        return found if isinstance(found, Failure) else found[""]


def _answers(done: Done, names: Sequence[str] | None = None) -> dict[str, Found] | Failure:
    """The answers that a process gave. One that failed for want of something of its work has that to blame."""
    if isinstance(done.said, Failure):
        return done.said
    found = wire.answers_in(done.said, names)
    if isinstance(found, Failure) or done.fault is None:
        return found
    return done.fault if any(isinstance(one, Failure) for one in found.values()) else found
