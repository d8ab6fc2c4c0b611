"""`fedsim attack RUN --adversary NAME`: another adversary on what a run captured."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import manifest as manifests
from fedsim.attackers import launching
from fedsim.commands.joining import cluster_of
from fedsim.commands.run import on_ray
from fedsim.errors import QUARANTINED, FedsimError, InputError
from fedsim.experiment import KNOWLEDGE, SIGHTS, AdversaryEntry, Component, Experiment
from fedsim.experiment_file import component, read
from fedsim.runs import RunFolder, alone, read_lines

if TYPE_CHECKING:
    from torch import nn

    from fedsim.adversaries.base import Observation


def run(options: argparse.Namespace) -> int:
    """Give every stored capture that grants what the plugin needs to it, score, and write the report again."""
    folder = RunFolder.open(Path(options.folder))
    _refuse_what_goes_on(folder)
    experiment = read(str(folder.experiment), on_ray(options.ray))
    plugin = component("adversaries", options.adversary, options.settings, f"--adversary {options.adversary}")
    name = _free(options.id or plugin.name, folder, experiment)

    _refuse_what_is_no_adversary(plugin)
    if experiment.runtime.isolation == "process":
        launching.start_early()

    from fedsim import screens
    from fedsim.adversaries.storage import JobStore
    from fedsim.attack import clients_of
    from fedsim.attacks import attacks_on, run_attacks
    from fedsim.commands.ending import conclude
    from fedsim.devices import choose_device
    from fedsim.placing import attack_tasks
    from fedsim.report.formats import counted

    store = JobStore(folder.captures, folder.jobs)
    seen = _different([store.observation(address) for address in store.captured()])
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
            name, plugin, vantage, clients_of(one), (one.round,), knows, aggregate="clients" in one.facts
        )

    model = _model(usable)
    against = [_objection(entry(one), experiment, one, model) for one in usable]
    fitting = [one for one, reason in zip(usable, against, strict=True) if reason is None]
    left_out = Counter(reason for reason in against if reason is not None)
    if not fitting:
        # What most of them are refused for; the reasons of the others would say nothing better.
        raise InputError(f"adversary '{plugin.name}' fits no capture of {folder.path}: {left_out.most_common(1)[0][0]}")
    if len(usable) < len(seen):
        left_out["it does not grant what the adversary needs"] = len(seen) - len(usable)
    with alone(folder.path, "fedsim run"), screens.choose_screen(options.json) as screen:
        _refuse_what_goes_on(folder)
        for reason, count in left_out.items():
            screen.warn(f"'{name}' leaves out {count} of {counted(len(seen), 'capture')}: {reason}")
        attacks = [attack for one in fitting for attack in attacks_on(one, entry(one), store, screen.warn)]
        if not attacks:
            raise FedsimError(f"adversary '{name}' made no job of the captures of {folder.path}")
        device = choose_device(experiment.runtime.device)
        with (
            cluster_of(experiment, wanted=options.ray is not None) as cluster,
            attack_tasks(experiment, cluster, screen.warn) as tasks,
        ):
            lines = run_attacks(attacks, experiment, folder, device, screen, screen.warn, tasks)
    _note(folder, name, plugin, fitting)
    code = QUARANTINED if any(line["status"] == "failed" for line in lines) else 0
    return conclude(folder, code, options.json, attacks=lines)


def _different(seen: list[Observation]) -> list[Observation]:
    """Each of them once: what several adversaries of a run captured may be the same but for what else they may use."""
    from fedsim.tensorfile import digest, pack

    found: dict[str, Observation] = {}
    for one in seen:
        tensors = {name: value for name, value in one.tensors.items() if not name.startswith(("colluder/", "sum/"))}
        facts = {key: value for key, value in one.facts.items() if key not in ("granted", "targets", "colluders")}
        found.setdefault(digest(pack(tensors, {"at": [one.round, one.client, one.vantage], "facts": facts})), one)
    return list(found.values())


def _refuse_what_is_no_adversary(plugin: Component) -> None:
    from fedsim.adversaries import threat

    lacking = threat.lacks(plugin.settings)
    if lacking:
        raise InputError(f"--adversary {plugin.name}: {lacking}")
    if plugin.settings.powers:
        asked = ", ".join(sorted(plugin.settings.powers))
        raise InputError(
            f"--adversary {plugin.name}: needs the power {asked}, but a run that is over cannot be altered; "
            "give a passive adversary"
        )


def _model(seen: list[Observation]) -> nn.Module | None:
    """The model of the run, built from a capture that shows it; None if none does."""
    import torch

    from fedsim.adversaries.inversion.victim import rebuild

    shown = [one for one in seen if {"global_model", "num_examples"} <= set(one.facts["granted"])]
    return rebuild(shown[0], torch.device("cpu")).model if shown else None


def _objection(entry: AdversaryEntry, experiment: Experiment, seen: Observation, model: nn.Module | None) -> str | None:
    """Why the adversary cannot work on a capture, as it would have said before round 0."""
    from fedsim import batchnorm
    from fedsim.adversaries import threat

    # What a derivation made of sums is captured as the single updates that it is.
    known = replace(threat.situation(entry, experiment), aggregate="clients" in seen.facts)
    if len(known.batch_sizes) == 1 and "num_examples" in seen.facts:
        # A client may have had fewer images than a batch holds.
        known = replace(known, batch_sizes=(min(known.batch_sizes[0], int(seen.facts["num_examples"])),))
    if model is not None:
        known = replace(known, has_batchnorm=bool(batchnorm.layers(model)))
    return threat.objection(entry.plugin.settings, known, model)


def _refuse_what_goes_on(folder: RunFolder) -> None:
    """InputError for a run that has not ended: its own attacks come first, and their lines are what it goes on from."""
    status = manifests.read(folder).get("status")
    if status not in ("done", None):
        raise InputError(
            f"{folder.path}: the run has not ended ({status}); `fedsim resume {folder.path}` goes on with it"
        )


def _free(name: str, folder: RunFolder, experiment: Experiment) -> str:
    """The name, or name-2, name-3, ... where the run has an adversary of that name already."""
    taken = {line["adversary"] for line in read_lines(folder.attacks)}
    taken |= {entry.id for entry in experiment.adversaries}
    number, out = 1, name
    while out in taken:
        number += 1
        out = f"{name}-{number}"
    return out


def _note(folder: RunFolder, name: str, plugin: Component, seen: list[Any]) -> None:
    """Add the adversary to the manifest's list of who sees what."""
    from fedsim.adversaries import threat
    from fedsim.attack import clients_of

    def worded(among: tuple[str, ...]) -> list[str]:
        words = [
            threat.words(item, summed=len(clients_of(one)) > 1)
            for item in among
            for one in seen
            if item in one.facts["granted"]
        ]
        return list(dict.fromkeys(words))

    manifest = manifests.read(folder)
    clients = sorted({client for one in seen for client in clients_of(one)})
    entry = {
        "adversary": name,
        "plugin": plugin.name,
        "vantage": seen[0].vantage,
        "targets": clients,
        "rounds": sorted({one.round for one in seen}),
        "sees": worded(SIGHTS),
        "knows": worded(KNOWLEDGE),
        "does_not_see": [],
        "powers": [],
        "words": f"'{name}' worked afterwards on the captures of this run, and had nothing else.",
    }
    manifest["who_sees_what"] = [*manifest.get("who_sees_what", []), entry]
    manifests.write(folder, manifest)
