"""`fedsim attack RUN --adversary NAME`: another adversary on what a run captured."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedsim import manifest as manifests
from fedsim.errors import InputError
from fedsim.experiment import KNOWLEDGE, AdversaryEntry, Component
from fedsim.experiment_file import component, read
from fedsim.runs import RunFolder, read_lines


def run(options: argparse.Namespace) -> int:
    """Give every stored capture that grants what the plugin needs to it, score, and write the report again."""
    folder = RunFolder.open(Path(options.folder))
    experiment = read(str(folder.experiment))
    plugin = component("adversaries", options.adversary, options.settings, f"--adversary {options.adversary}")
    name = _free(options.id or plugin.name, folder)

    from fedsim import screens
    from fedsim.adversaries.base import Observation
    from fedsim.adversaries.storage import JobStore
    from fedsim.attacks import Attack, clients_of, run_attacks
    from fedsim.commands.ending import QUARANTINED, conclude
    from fedsim.devices import choose_device

    store = JobStore(folder.captures, folder.jobs)
    seen = [store.observation(address) for address in store.captured()]
    if not seen:
        raise InputError(f"{folder.path}: the run captured nothing; its experiment has no adversary that saw a target")
    usable = [one for one in seen if plugin.settings.needs <= set(one.facts["granted"])]
    if not usable:
        lacking: list[set[str]] = [set(plugin.settings.needs) - set(one.facts["granted"]) for one in seen]
        lacking.sort(key=len)
        missing = sorted(lacking[0])
        raise InputError(
            f"adversary '{plugin.name}' needs {', '.join(missing)}, which no capture of {folder.path} grants; "
            f"run the experiment again with an adversary that knows it"
        )

    def entry(one: Observation) -> AdversaryEntry:
        knows: Any = tuple(item for item in KNOWLEDGE if item in one.facts["granted"])
        vantage: Any = one.vantage
        return AdversaryEntry(
            name, plugin, vantage, clients_of(one), (one.round,), knows, aggregate=len(clients_of(one)) > 1
        )

    attacks = [
        Attack(entry(one), store.put(job, plugin.describe(), name), clients_of(one), one.round)
        for one in usable
        for job in plugin.settings.capture(one)
    ]
    with screens.choose_screen(options.json) as screen:
        if len(usable) < len(seen):
            left = len(seen) - len(usable)
            screen.warn(f"{left} of {len(seen)} captures do not grant what '{plugin.name}' needs and are left out")
        lines = run_attacks(attacks, experiment, folder, choose_device(experiment.runtime.device), screen, screen.warn)
    _note(folder, name, plugin, usable)
    code = QUARANTINED if any(line["status"] == "failed" for line in lines) else 0
    return conclude(folder, code, options.json, attacks=lines)


def _free(name: str, folder: RunFolder) -> str:
    """The name, or name-2, name-3, ... where the run has an adversary of that name already."""
    taken = {line["adversary"] for line in read_lines(folder.attacks)}
    number, out = 1, name
    while out in taken:
        number += 1
        out = f"{name}-{number}"
    return out


def _note(folder: RunFolder, name: str, plugin: Component, seen: list[Any]) -> None:
    """Add the adversary to the manifest's list of who sees what."""
    from fedsim.attacks import clients_of

    manifest = manifests.read(folder)
    granted = sorted({item for one in seen for item in one.facts["granted"]})
    clients = sorted({client for one in seen for client in clients_of(one)})
    entry = {
        "adversary": name,
        "plugin": plugin.name,
        "vantage": seen[0].vantage,
        "targets": clients,
        "rounds": sorted({one.round for one in seen}),
        "sees": [item for item in granted if item not in KNOWLEDGE],
        "knows": [item for item in granted if item in KNOWLEDGE],
        "does_not_see": [],
        "powers": [],
        "words": f"'{name}' worked afterwards on the captures of this run, and had nothing else.",
    }
    manifest["who_sees_what"] = [*manifest.get("who_sees_what", []), entry]
    manifests.write(folder, manifest)
