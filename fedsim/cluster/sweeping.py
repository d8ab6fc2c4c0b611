"""A sweep's work as tasks of a Ray cluster. Its nodes need not share files with the sweep, nor with one another."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.cluster.connecting import Cluster, ray_module
from fedsim.cluster.probing import PLACE
from fedsim.errors import InputError
from fedsim.sweeps import away
from fedsim.sweeps.pool import Message, Work

if TYPE_CHECKING:
    from fedsim.experiment import Experiment
    from fedsim.sweeps.runner import Order

TRIES = 4
"""How often a piece of work is begun whose worker or node dies. What fails by itself is not tried again."""

PATIENCE = 5.0
"""Seconds that tasks get to end by themselves when they are to stop."""

LISTEN = 0.25
"""Seconds between two looks at what tasks tell."""


@dataclass
class _Task:
    """A piece of work on its way. deaths: how often what worked on it has died."""

    order: Order
    ref: Any
    deaths: int = 0


class RayPool:
    """A `Pool` of tasks, `jobs` at once at most. cluster: that this process is connected to."""

    def __init__(self, work: Work, jobs: int, cluster: Cluster) -> None:
        self._ray = ray = ray_module()
        self._work, self._jobs, self._cluster = work, jobs, cluster
        self._gpus = has_gpus(cluster)
        self._name = secrets.token_hex(4)
        # Tries are counted here and not by Ray, so that each can be told.
        self._task = ray.remote(max_retries=0)(_carry_out)
        self._board = ray.remote(num_cpus=0, max_restarts=-1)(_Notes).remote()
        self._tasks: dict[str, _Task] = {}
        self._models: dict[str, Any] = {}

    @property
    def free(self) -> int:
        """See `Pool`."""
        return self._jobs - self.busy

    @property
    def busy(self) -> int:
        """See `Pool`."""
        return len(self._tasks)

    def start(self, piece: str, content: Order) -> None:
        """See `Pool`."""
        self._tasks[piece] = _Task(content, self._sent(piece, content))

    def messages(self, seconds: float) -> Iterator[Message]:
        """See `Pool`."""
        deadline = time.monotonic() + seconds
        while self._tasks:
            heard = self._heard()
            yield from heard
            left = deadline - time.monotonic()
            refs = {task.ref: piece for piece, task in self._tasks.items()}
            ready, _ = self._ray.wait(list(refs), num_returns=1, timeout=max(0.0, min(left, LISTEN)))
            if ready:
                yield from self._heard()  # before the end is told
                yield self._ended(refs[ready[0]])
            if heard or ready or left <= 0:
                return

    def stop(self) -> None:
        """See `Pool`. Temporary folders go too, also where a task had to be killed."""
        ray, refs = self._ray, [task.ref for task in self._tasks.values()]
        self._tasks.clear()
        self._models.clear()
        with suppress(ray.exceptions.RayError, ConnectionError):
            for ref in refs:
                ray.cancel(ref)
            left = ray.wait(refs, num_returns=len(refs), timeout=PATIENCE)[1] if refs else []
            for ref in left:
                ray.cancel(ref, force=True)
            if left:
                ray.wait(left, num_returns=len(left), timeout=PATIENCE)
                self._clear_nodes()
            ray.kill(self._board)

    def _sent(self, piece: str, order: Order) -> Any:
        models = away.models_of(order)
        for path in models:
            if path not in self._models:
                self._models[path] = self._ray.put(Path(path).read_bytes())
        cpus, gpus = needs(order.experiment, self._gpus)
        task = self._task.options(num_cpus=cpus, num_gpus=gpus, name=f"fedsim sweep: {piece}")
        parcel = away.Parcel(order, self._name)
        return task.remote(self._work, parcel, models, piece, self._board, *map(self._models.get, models))

    def _heard(self) -> list[Message]:
        """What tasks have told. Nothing, while what keeps it is started anew after its node has died."""
        said: list[tuple[str, str, tuple[Any, ...]]] = []
        with suppress(self._ray.exceptions.RayError):
            said = self._ray.get(self._board.heard.remote(), timeout=PATIENCE)
        return [Message(*one) for one in said if one[0] in self._tasks]

    def _ended(self, piece: str) -> Message:
        """What became of a task that is over: its end, or that it is tried again."""
        errors = self._ray.exceptions
        task = self._tasks[piece]
        arrival = away.Arrival(task.order.folder)
        try:
            word, fact, pieces = self._ray.get(task.ref)
            while pieces:
                arrival.add(self._ray.get(pieces.pop(0)))
            arrival.settle()
        except (
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.ObjectLostError,
            errors.OutOfMemoryError,
        ) as error:
            why = _DEATHS.get(type(error).__name__, "its worker died")
            task.deaths += 1
            if task.deaths < TRIES:
                task.ref = self._sent(piece, task.order)
                return Message(piece, "warn", (f"{why}; it is run again ({task.deaths} of {TRIES - 1})",))
            word, fact = "failed", f"{why}, {task.deaths} times; perhaps there was too little memory: try fewer --jobs"
        except errors.RayError as error:  # first, as what a task raised may be an OSError besides
            word, fact = "failed", _cause(error)
        except OSError as error:
            word, fact = "failed", f"what came of it cannot be written: {error}"
        finally:
            arrival.drop()
        del self._tasks[piece]
        return Message(piece, word, (fact,))

    def _clear_nodes(self) -> None:
        """Have every node remove what killed tasks have left there."""
        ray = self._ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        clear = ray.remote(num_cpus=0, max_retries=0)(away.clear_rooms_of)
        there = [NodeAffinitySchedulingStrategy(node.id, soft=False) for node in self._cluster.nodes]
        refs = [clear.options(scheduling_strategy=one).remote(self._name, PATIENCE) for one in there]
        ray.wait(refs, num_returns=len(refs), timeout=2 * PATIENCE)


_DEATHS = {"NodeDiedError": "its node died", "OutOfMemoryError": "its node ran out of memory"}


def needs(experiment: Experiment, gpus: bool) -> tuple[float, float]:
    """The processors and GPUs that a run takes. gpus: whether the cluster has any."""
    runtime = experiment.runtime
    cpus = float(runtime.threads or 1)
    if not gpus or not runtime.device.startswith(("cuda", "auto")):
        return cpus, 0.0
    return cpus, max(runtime.gpus_per_client, runtime.gpus_per_attack) or 1.0


def at_once(cluster: Cluster, experiments: Sequence[Experiment]) -> int:
    """How many of these runs the cluster has room for. Raises InputError where no node has room for one of them."""
    most = 0
    for cpus, gpus in sorted({needs(one, has_gpus(cluster)) for one in experiments}):
        room = sum(cluster.slots(cpus, gpus).values())
        if not room:
            what = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
            raise InputError(
                f"{PLACE}: '{cluster.address}': a run takes {what}, and no node has that ({cluster.words()}); "
                "lower runtime.threads, or let another node join"
            )
        most = max(most, room)
    return most


def has_gpus(cluster: Cluster) -> bool:
    """Whether there is a GPU in the cluster."""
    return any(node.gpus for node in cluster.nodes)


def _cause(error: Exception) -> str:
    """What a task's error says, in a line."""
    cause = getattr(error, "cause", None) or error
    said = ([line for line in str(cause).splitlines() if line.strip()] or [""])[-1]
    if isinstance(cause, ImportError) or "ModuleNotFoundError" in said:
        return f"{said.strip()}; every node needs fedsim and the plugins in use, in the versions that are here"
    return f"{type(cause).__name__}: {said.strip()}"


def _carry_out(
    work: Work, parcel: away.Parcel, paths: Sequence[str], piece: str, board: Any, *models: bytes
) -> tuple[str, Any, list[Any]]:
    """The task: word, fact, and what was made, in pieces."""
    # As the command line does: threads that wait for one another must not spin. torch may not be imported yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    ray = ray_module()
    last: list[Any] = []

    def tell(word: str, *facts: Any) -> None:
        last[:] = [board.tell.remote(piece, word, facts)]

    with away.temporary_room(parcel.sweep) as room:
        word, fact = away.carry_out(parcel, dict(zip(paths, models, strict=True)), work, tell, room)
        if last:  # so that the last word is heard before the end is
            ray.wait(last, timeout=PATIENCE)
        return word, fact, [ray.put(one) for one in away.packed(room / "made")]


class _Notes:
    """Keeps what tasks tell until it is asked for: all of it, as there are warnings among it."""

    def __init__(self) -> None:
        self._said: list[tuple[str, str, tuple[Any, ...]]] = []

    def tell(self, piece: str, word: str, facts: tuple[Any, ...]) -> None:
        """From a task."""
        self._said.append((piece, word, facts))

    def heard(self) -> list[tuple[str, str, tuple[Any, ...]]]:
        """All that is new."""
        said, self._said = self._said, []
        return said
