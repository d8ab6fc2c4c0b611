"""Attacks as stateless Ray tasks: any machine can do any piece of work, any number of times.

A task whose worker or process is killed is tried again, up to three times; what a plugin itself says is final.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

from fedsim.attackers.base import Failure, Lost
from fedsim.cluster.attack_worker import Done, Work, do
from fedsim.cluster.board import Reader
from fedsim.cluster.connecting import Cluster, ray_module
from fedsim.errors import InputError
from fedsim.progress import Listener

RETRIES = 3

AHEAD = 64
"""Tasks that are with Ray at a time, and at least twice as many as can run: what they work on fills its store."""

_GLANCE = 0.25
"""Seconds between two looks at the board while nothing ends."""

_LONG = 60.0
"""Seconds without any attack at work, after which a user is told what they wait for."""


class Held:
    """Bytes in the cluster's store, for as long as somebody holds this. read: gets them where they were before."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self.ref = ray_module().put(read())

    def renew(self, lost: Any) -> None:
        """Put them there again, if nobody has done so since that reference was lost."""
        if self.ref == lost:
            self.ref = ray_module().put(self._read())


@dataclass(eq=False)
class Ticket:
    """A piece of work that was handed in. outcome: what came of it, once it is over. tell: who hears how far it is."""

    work: Work
    held: dict[str, Held]
    tell: Listener
    outcome: Done | None = None
    began: bool = False
    died: list[str] = field(default_factory=list)
    """Why, each time that its worker or process did."""

    def hear(self, done: int, total: int, note: str) -> None:
        """Hear how far it is."""
        self.began = True
        self.tell(done, total, note)


class AttackTasks:
    """All attacks of a run on a cluster. One thread alone may use it.

    cpus, gpus: that each attack is given; a part of a GPU is a share of its memory, too. warn: is told when one is
    tried again. retries: how often that was. Raises InputError where no machine of a cluster of our own is so large.
    """

    def __init__(self, cluster: Cluster, cpus: float, gpus: float, warn: Callable[[str], None]) -> None:
        self._ray = ray_module()
        self._cluster, self._gpus, self.warn = cluster, gpus, warn
        self._size = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        self._slots = sum(cluster.slots(cpus, gpus).values())
        if not self._slots and cluster.local:
            raise InputError(
                f"runtime.cpus_per_attack, runtime.gpus_per_attack: an attack is to have {self._size}, but here is "
                f"{cluster.words()}; ask for less"
            )
        # A worker serves many attacks: it holds nothing of a GPU itself.
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 0, "max_calls": 0}
        self._task = self._ray.remote(**options)(do)
        self._reader: Reader | None = Reader()
        self._names = itertools.count()
        self._waiting: deque[Ticket] = deque()
        self._running: dict[Any, Ticket] = {}
        self._store: WeakValueDictionary[str, Held] = WeakValueDictionary()
        self._quiet_since = time.monotonic()
        self.retries = 0

    @property
    def batches(self) -> int:
        """Into how many batches jobs are best split that run together: one for each attack that a GPU has room for."""
        return max(1, self._slots) if self._gpus else 1

    def hold(self, address: str, read: Callable[[], bytes]) -> Held:
        """Bytes in the cluster's store: once, whoever asks. Raises whatever `read` raises."""
        held = self._store.get(address)
        if held is None:
            held = self._store[address] = Held(read)
        return held

    def submit(self, work: Work, held: Mapping[str, Held], tell: Listener) -> Ticket:
        """Hand in a piece of work; `name` and `observations` are filled in here. held: its observations, by address."""
        ticket = Ticket(replace(work, name=str(next(self._names))), dict(held), tell)
        self._waiting.append(ticket)
        self._launch()
        return ticket

    def wait(self, ticket: Ticket) -> Done:
        """What came of a piece of work. Looks after all others meanwhile."""
        while ticket.outcome is None:
            self.look(_GLANCE)
        return ticket.outcome

    def look(self, patience: float = 0.0) -> None:
        """Take what has ended, try again what was killed, and pass on the news; wait so many seconds for something to
        end, if anything runs.
        """
        self._launch()
        if not self._running:
            return
        if self._ray.wait(list(self._running), num_returns=1, timeout=patience)[0]:
            refs = list(self._running)
            for ref in self._ray.wait(refs, num_returns=len(refs), timeout=0)[0]:
                self._take(ref, self._running.pop(ref))
            self._launch()
        if self._reader is not None:
            self._reader.read({ticket.work.name: ticket.hear for ticket in self._running.values()})
        self._say_if_stuck()

    def cancel(self, tickets: Iterable[Ticket]) -> None:
        """End these pieces of work, whatever they are at: the worker goes, and its attack's process with it."""
        unwanted = {id(ticket) for ticket in tickets}
        self._waiting = deque(ticket for ticket in self._waiting if id(ticket) not in unwanted)
        refs = [ref for ref, ticket in self._running.items() if id(ticket) in unwanted]
        for ref in refs:
            del self._running[ref]
            with suppress(self._ray.exceptions.RayError):
                self._ray.cancel(ref, force=True)
        if refs:
            self._ray.wait(refs, num_returns=len(refs), timeout=5, fetch_local=False)

    def close(self) -> None:
        """End all that is still under way."""
        self.cancel([*self._waiting, *self._running.values()])
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _launch(self) -> None:
        """Give Ray more to do, where it has room."""
        if self._waiting and self._reader is None:  # it was closed, and is used again
            self._reader = Reader()
        while self._waiting and len(self._running) < max(AHEAD, 2 * self._slots):
            ticket = self._waiting.popleft()
            ticket.began = False
            ticket.work = replace(ticket.work, observations={key: held.ref for key, held in ticket.held.items()})
            assert self._reader is not None
            self._running[self._task.remote(ticket.work, self._reader.handle)] = ticket

    def _take(self, ref: Any, ticket: Ticket) -> None:
        """What came of a task."""
        errors = self._ray.exceptions
        self._quiet_since = time.monotonic()
        try:
            done: Done = self._ray.get(ref)
        except errors.ObjectLostError:
            for key, held in ticket.held.items():
                held.renew(ticket.work.observations[key])
            done = Done(Lost("", "what it worked on, or its answer, was lost with a machine of the cluster"))
        except errors.OutOfMemoryError:
            done = Done(Lost("", "its Ray worker was killed, as its machine ran out of memory"))
        except (errors.NodeDiedError, errors.LocalRayletDiedError):
            done = Done(Lost("", "its machine left the cluster"))
        except errors.WorkerCrashedError:
            done = Done(Lost("", "its Ray worker died"))
        except errors.RayTaskError as error:  # not the plugin's, which never comes this way
            cause = getattr(error, "cause", error)
            # A worker whose machine dies loses its connection to Ray before it goes down itself.
            kind = Lost if isinstance(cause, OSError | errors.RayError) else Failure
            done = Done(kind("", f"its Ray worker could not run it: {type(cause).__name__}: {cause}"))
        except (errors.RuntimeEnvSetupError, errors.TaskUnschedulableError, errors.TaskCancelledError) as error:
            done = Done(Failure("", f"Ray did not run it: {' '.join(str(error).split())}"))
        if not isinstance(done.said, Lost):
            self._end(ticket, done)
            return
        ticket.died.append(done.said.text)
        if len(ticket.died) <= RETRIES:
            self.retries += 1
            again = f"tried again, {len(ticket.died)} of at most {RETRIES} times"
            self.warn(f"{_whose(ticket.work)}: {done.said.text}; {again}")
            self._waiting.appendleft(ticket)
        else:
            text = f"quarantined, as it died {len(ticket.died)} times: {'; '.join(dict.fromkeys(ticket.died))}"
            self._end(ticket, Done(Lost("", text)))

    def _end(self, ticket: Ticket, done: Done) -> None:
        ticket.outcome = done
        ticket.held.clear()

    def _say_if_stuck(self) -> None:
        """Once, where no attack begins for long: something else has the cluster's processors, or no machine is so large
        (yet, where machines may join).
        """
        now = time.monotonic()
        if any(ticket.began for ticket in self._running.values()) or not self._running:
            self._quiet_since = now
        elif now - self._quiet_since > _LONG:
            self._quiet_since = float("inf")
            free = self._ray.available_resources()
            left = f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free"
            words = "runtime.cpus_per_attack, runtime.gpus_per_attack"
            self.warn(
                f"attacks wait for {self._size} each ({words}); the cluster is {self._cluster.words()}, of which {left}"
            )


def _whose(work: Work) -> str:
    jobs = [job[:8] for job in work.jobs]
    which = f"job {jobs[0]}" if len(jobs) == 1 else f"{len(jobs)} jobs"
    return f"adversary '{work.adversary.partition(' ')[0]}', {which}" if jobs else f"adversary '{work.adversary}'"
