"""How large a client worker is, and how many of them a cluster holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsim.cluster.connecting import Cluster
from fedsim.errors import InputError
from fedsim.experiment import Experiment


@dataclass(frozen=True)
class Size:
    """What a worker takes: CPUs, GPUs (or a part of one), threads of torch. workers: how many; None: as many as fit.

    beside: CPUs and GPUs of the largest thing that is to find room beside the workers, such as an attack. patience:
    seconds that a worker may take over a message; None: for ever.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    threads: int = 1
    workers: int | None = None
    beside: tuple[float, float] = (0.0, 0.0)
    patience: float | None = None

    @staticmethod
    def of(experiment: Experiment) -> Size:
        """The size that an experiment asks for."""
        runtime = experiment.runtime
        during = runtime.attacks == "during" and bool(experiment.adversaries)
        beside = (runtime.cpus_per_attack, runtime.gpus_per_attack) if during else (0.0, 0.0)
        threads = runtime.threads or 1
        patience = runtime.client_timeout
        return Size(runtime.cpus_per_client, runtime.gpus_per_client, threads, runtime.workers, beside, patience)

    def fits(self, cluster: Cluster) -> int:
        """How many fit on all nodes together."""
        return sum(cluster.slots(self.cpus, self.gpus).values())

    def workers_on(self, cluster: Cluster) -> int:
        """How many to start. Raises InputError where the cluster does not hold so many."""
        fit, there = self.fits(cluster), f"the cluster has {cluster.words()}"
        if self.workers is not None:
            if self.workers > fit:
                raise InputError(
                    f"runtime.workers: {self.workers} workers of {self.words()} do not fit, {fit} would; {there}; "
                    "lower runtime.workers, runtime.cpus_per_client or runtime.gpus_per_client"
                )
            return self.workers
        if not fit:
            raise InputError(
                f"runtime.cpus_per_client, runtime.gpus_per_client: no worker of {self.words()} fits on any node; "
                f"{there}; lower them"
            )
        return max(1, fit - self._kept_free())

    def words(self) -> str:
        """`1 CPU and 0.25 GPU`."""
        gpus = f" and {self.gpus:g} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else ""
        return f"{self.cpus:g} CPU{'s' if self.cpus > 1 else ''}{gpus}"

    def _kept_free(self) -> int:
        """How many workers take the room that is kept free."""
        parts = [need / have for need, have in zip(self.beside, (self.cpus, self.gpus), strict=True) if have > 0]
        return math.ceil(max(parts, default=0.0) - 1e-9)
