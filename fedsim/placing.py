"""Where the clients and the attacks of an experiment work: in this process and its own, or on a Ray cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from fedsim.clients.app import client_app
from fedsim.clients.workbench import workbench
from fedsim.data.federation import Parcel, open_parcel, parcel
from fedsim.experiment import Experiment
from fedsim.grids.inline import InlineGrid
from fedsim.grids.watched import WatchedGrid

if TYPE_CHECKING:
    from fedsim.cluster.attacks import AttackTasks
    from fedsim.cluster.connecting import Cluster

Warn = Callable[[str], None]


def as_on_workers(experiment: Experiment) -> Experiment:
    """An experiment as a cluster's workers play it, for what is derived again at the driver: with as many threads, and
    on the processor where workers are given no GPU, which Ray hides from them then.
    """
    runtime = experiment.runtime
    device = "cpu" if runtime.device == "auto" and not runtime.gpus_per_client else runtime.device
    return replace(experiment, runtime=replace(runtime, threads=runtime.threads or 1, device=device))


def grid_of(experiment: Experiment, cluster: Cluster | None, warn: Warn) -> WatchedGrid:
    """The grid of an experiment's clients, to be closed."""
    if cluster is None:
        return InlineGrid(client_app(experiment), experiment.clients.count)
    from fedsim.cluster.sizing import Size
    from fedsim.grids.ray import RayGrid

    # A worker sees the GPU that it is given, and no other: it is the first one there.
    device = experiment.runtime.device.partition(":")[0]
    experiment = replace(experiment, runtime=replace(experiment.runtime, device=device))
    return RayGrid(
        cluster,
        functools.partial(client_app, experiment),
        experiment.clients.count,
        size=Size.of(experiment),
        warn=warn,
        prepare=functools.partial(_prepared, experiment, _parcel(experiment)),
    )


def _parcel(experiment: Experiment) -> Parcel:
    data = experiment.data
    return parcel(data.dataset.settings, data.partition.settings, experiment.clients.count, experiment.seed)


def _prepared(experiment: Experiment, sent: Parcel) -> None:
    """Make a worker ready. Data come with it: to load and to spread them takes as long as to import torch, and a node
    holds them once for all of its workers.
    """
    open_parcel(sent)
    workbench(experiment)


def attack_tasks(
    experiment: Experiment, cluster: Cluster | None, warn: Warn
) -> AbstractContextManager[AttackTasks | None]:
    """What gives an experiment's attacks to a cluster, for the length of a block; None where they run here."""
    if cluster is None or not experiment.adversaries:
        return nullcontext()
    from fedsim.attackers.choosing import device_on_ray
    from fedsim.cluster.attacks import AttackTasks

    device_on_ray(experiment.runtime)  # which refuses before round 0 what no attack could be given
    return closing(AttackTasks(cluster, experiment.runtime.cpus_per_attack, experiment.runtime.gpus_per_attack, warn))
