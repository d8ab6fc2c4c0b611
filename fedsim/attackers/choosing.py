"""Who runs an adversary's attacks."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fedsim.adversaries.storage import JobStore
from fedsim.attackers.base import Attacker
from fedsim.attackers.inline import InlineAttacker
from fedsim.attackers.process import ProcessAttacker
from fedsim.attackers.rebuilding import described
from fedsim.experiment import AdversaryEntry, Runtime


def attacker_for(
    entry: AdversaryEntry, store: JobStore, device: torch.device, runtime: Runtime, warn: Callable[[str], None]
) -> Attacker:
    """One for this adversary alone: a process, unless the experiment wants none, or none could find the plugin."""
    if runtime.isolation == "process":
        plugin = described(entry.plugin)
        if plugin is not None:
            return ProcessAttacker(plugin, store, device)
        warn(f"adversary '{entry.id}' is not installed as a plugin, so its attacks run in the simulation's own process")
    return InlineAttacker(entry.plugin.settings, store, device)
