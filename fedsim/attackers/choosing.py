"""Who runs an adversary's attacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from fedsim.adversaries.storage import JobStore
from fedsim.attackers.base import Attacker
from fedsim.attackers.hiring import Role
from fedsim.attackers.inline import InlineAttacker
from fedsim.attackers.process import ProcessAttacker
from fedsim.attackers.rebuilding import described
from fedsim.errors import InputError
from fedsim.experiment import AdversaryEntry, Runtime

if TYPE_CHECKING:
    from fedsim.cluster.attacks import AttackTasks


def attacker_for(
    entry: AdversaryEntry,
    store: JobStore,
    device: torch.device,
    runtime: Runtime,
    warn: Callable[[str], None],
    tasks: AttackTasks | None = None,
) -> Attacker:
    """One for this adversary alone: a process, unless the experiment wants none, or none could find the plugin; on a
    cluster where there are `tasks`.
    """
    if runtime.isolation == "process":
        plugin = described(entry.plugin)
        if plugin is not None and tasks is not None:
            from fedsim.attackers.on_ray import RayAttacker

            share = runtime.gpus_per_attack if 0 < runtime.gpus_per_attack < 1 else 1.0
            role = Role(plugin, device_on_ray(runtime), torch.get_num_threads(), share, runtime.attack_timeout)
            keep = hasattr(entry.plugin.settings, "combine")
            return RayAttacker(entry.id, role, store, tasks, keep)
        if plugin is not None:
            return ProcessAttacker(plugin, store, device, runtime.attack_timeout)
        warn(f"adversary '{entry.id}' is not installed as a plugin, so its attacks run in the simulation's own process")
    return InlineAttacker(entry.plugin.settings, store, device)


def device_on_ray(runtime: Runtime) -> str:
    """Which device an attack takes on whatever machine it runs: the first of the GPUs that Ray gives it, or the CPU.
    Raises InputError where a GPU is asked for and none is given.
    """
    if runtime.device.startswith("cuda") and not runtime.gpus_per_attack:
        raise InputError(
            f'runtime.gpus_per_attack: 0, but runtime.device is "{runtime.device}", and on Ray an attack sees no GPU '
            'that it is not given; set gpus_per_attack = 1 (or a part of one), or device = "cpu"'
        )
    if runtime.device == "auto":
        return "cuda" if runtime.gpus_per_attack else "cpu"
    return runtime.device.partition(":")[0]
