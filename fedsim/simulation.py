"""One experiment, start to finish. The only module that knows clients, server and adversaries alike.

The way of a gradient: server round loop -> grid -> client trains and defends -> grid -> wiretap -> adversary's jobs ->
attacks -> scoring -> report.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from flwr.app import Context, RecordDict
from torch import Tensor

from fedsim import batchnorm
from fedsim.adversaries import threat
from fedsim.adversaries.tampering import Tampering
from fedsim.adversaries.wiretap import Wiretap
from fedsim.attack import Attack
from fedsim.attacks import run_attacks
from fedsim.clients.app import client_app
from fedsim.clients.workbench import Workbench, workbench
from fedsim.errors import InputError
from fedsim.experiment import AdversaryEntry, Experiment
from fedsim.grids.inline import InlineGrid
from fedsim.models import checkpoints
from fedsim.progress import Screen
from fedsim.report.formats import counted, numbered
from fedsim.runs import RoundRecord, RunFolder, append_line, write_whole
from fedsim.secagg.terms import public_facts
from fedsim.server.app import server_app
from fedsim.watching import Watch
from fedsim.witness import Witness


@dataclass
class Outcome:
    """What a run came to. `quarantined` counts attacks whose plugin failed."""

    rounds: list[RoundRecord] = field(default_factory=list)
    attacks: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def quarantined(self) -> int:
        """How many attacks failed."""
        return sum(line["status"] == "failed" for line in self.attacks)


def simulate(experiment: Experiment, folder: RunFolder, screen: Screen) -> Outcome:
    """Train the federation under the adversaries' eyes, then run their attacks and score them.

    Raises InputError for what only a built model can show to be wrong, before round 0.
    """
    if experiment.runtime.threads:
        torch.set_num_threads(experiment.runtime.threads)
    place = workbench(experiment)
    _check_built(experiment, place)
    outcome = Outcome(facts=_facts(experiment, place))
    warned: set[str] = set()

    def warn(text: str) -> None:
        outcome.warnings.append(text)
        screen.warn(text)

    def on_round(record: RoundRecord) -> None:
        outcome.rounds.append(record)
        append_line(folder.rounds, record.as_json())
        screen.rounds(record.round, experiment.rounds, record)
        if record.secure and record.secure.get("clipped") and not warned:
            warned.add("clipped")
            warn(
                f"round {record.round}: secure aggregation cut off {counted(record.secure['clipped'], 'coordinate')} "
                "that were too large; raise server.secure_aggregation.clip, if this goes on"
            )

    grid = InlineGrid(client_app(experiment), experiment.clients.count)
    witness = Witness(place, grid)
    watch = Watch(experiment, place, witness, folder, warn)
    wiretap = Wiretap(experiment, _public(experiment, place), witness, watch)
    grid.let_alter(Tampering(experiment, warn))
    # In this order: what is left of the last round is handed over before the witness notes a new one.
    grid.watch(wiretap)
    grid.watch(witness.note)

    def on_model(round_: int, parameters: Mapping[str, Tensor], running: Mapping[str, Tensor]) -> None:
        if round_ in experiment.save_rounds:
            folder.checkpoints.mkdir(exist_ok=True)
            facts = {"round": round_, "seed": experiment.seed, **checkpoints.model_facts(experiment)}
            write_whole(folder.checkpoint(round_), checkpoints.pack(parameters, running, facts))

    server = server_app(experiment, on_round, on_model, wiretap.total)
    server(grid, Context(grid.run.run_id, 0, {}, RecordDict(), {}))
    wiretap.close()
    watch.close()
    if watch.notes:
        outcome.facts["notes"] = watch.notes
    for entry in experiment.adversaries:
        _note_unseen(entry, experiment, watch.attacks, warn)
    outcome.attacks = run_attacks(watch.attacks, experiment, folder, place.device, screen, warn)
    folder.attacks.touch()  # no line says that nothing was attacked, and no file that the run broke off
    return outcome


def _check_built(experiment: Experiment, place: Workbench) -> None:
    """What only the built model can show: its layers, and, of a model from elsewhere (torchvision:NAME), its
    BatchNorm.
    """
    has = bool(batchnorm.layers(place.model))
    _check_defenses(experiment, place)
    mode = experiment.server.secure_aggregation
    if mode is not None:
        terms = place.terms
        for key, problem in mode.settings.problems(terms.clients, terms.most_examples, terms.most_steps):
            raise InputError(f"server.secure_aggregation.{key}: {problem}")
    for position, entry in enumerate(experiment.adversaries):
        plugin, path = entry.plugin.settings, f"adversaries[{position}]: '{entry.id}'"
        known = replace(threat.situation(entry, experiment), has_batchnorm=has)
        # A copy: who keeps what it is asked about would watch every client train.
        objection = threat.objection(plugin, known, copy.deepcopy(place.model))
        if objection:
            raise InputError(f"{path}: does not fit this experiment (model '{experiment.model.name}'): {objection}")
        asked = {"batch_statistics", "running_statistics"} & (set(entry.knows) | plugin.needs)
        if asked and not has:
            raise InputError(f"{path}: asks for '{min(asked)}', but model '{experiment.model.name}' has no BatchNorm")


def _check_defenses(experiment: Experiment, place: Workbench) -> None:
    """A defense may not fit the model, a client needs as many images as its encoding mixes, and public images that are
    mixed in have to be there and of the same size.
    """
    tried = set()
    for client, share in enumerate(place.federation.shares):
        against = place.objection(client)
        if against:
            raise InputError(f"clients.defenses (of client {client}): {against}")
        for defense in experiment.clients.training(client).defenses:
            settings = defense.settings
            if hasattr(settings, "objection_to"):
                reason = settings.objection_to(place.model, experiment.clients.batchnorm)
                if reason:
                    raise InputError(f"clients.defenses: '{defense.name}' (of client {client}): {reason}")
            needed = settings.images_needed() if hasattr(settings, "images_needed") else 0
            if len(share) < needed:
                raise InputError(
                    f"clients.defenses: '{defense.name}' mixes {needed} of a client's images, but client {client} has "
                    f"{len(share)}; lower its k, or give each client more images (fewer clients, another partition)"
                )
            if needed and defense not in tried:
                tried.add(defense)
                place.replay(client, 1, {}, {}, statistics=False)


def _note_unseen(entry: AdversaryEntry, experiment: Experiment, attacks: list[Attack], warn: Any) -> None:
    """A target that was not drawn, or dropped out, shows nothing; say so rather than leave a gap."""
    if entry.vantage == "client" or entry.derive is not None:  # a derivation has notes of its own
        return
    why = "not drawn, dropped out, or the plugin made no job of it"
    for round_ in entry.rounds:
        done = {client for one in attacks if one.entry is entry and one.round == round_ for client in one.clients}
        unseen = [client for client in entry.targets if client not in done]
        if threat.is_summed(entry, experiment) and unseen:
            left, whom = numbered(sorted(done), "client"), numbered(unseen, "client")
            lost = f"there is no sum of {whom} in round {round_} to attack ({why})"
            if done:
                lost = f"the sum of round {round_} is of {left} without {whom} (not drawn, or dropped out)"
            warn(f"adversary '{entry.id}': {lost}")
            continue
        for client in unseen:
            warn(f"adversary '{entry.id}': there is no capture of client {client} in round {round_} to attack ({why})")


def _public(experiment: Experiment, place: Workbench) -> dict[str, Any]:
    """The training protocol that every participant knows."""
    data, model = place.federation.data, experiment.model.describe()
    name = model.pop("name")
    return {
        "model": {"name": name, "settings": model},
        "image_shape": list(data.shape),
        "classes": data.classes,
        "mean": list(data.normalisation.mean),
        "std": list(data.normalisation.std),
        "batchnorm": experiment.clients.batchnorm,
        "algorithm": experiment.clients.algorithm,
        "loss": "cross_entropy",
        **_secure(experiment, place),
    }


def _secure(experiment: Experiment, place: Workbench) -> dict[str, Any]:
    """How a secure aggregation counts, which is public; nothing without one."""
    mode = experiment.server.secure_aggregation
    return {"secure_aggregation": {"name": mode.name, **public_facts(mode.settings, place.terms)}} if mode else {}


def _facts(experiment: Experiment, place: Workbench) -> dict[str, Any]:
    """The part of the manifest that needs data and model."""
    data = place.federation.data
    labels = [data.train.labels[share] for share in place.federation.shares]
    secure = {
        name: {key: value for key, value in facts.items() if key != "layout"}
        for name, facts in _secure(experiment, place).items()
    }
    return {
        **secure,
        "device": str(place.device),
        "threads": torch.get_num_threads(),
        "parameters": sum(value.numel() for value in place.model.parameters()),
        "classes": data.classes,
        "class_names": list(data.class_names),
        "image_shape": list(data.shape),
        "train_examples": len(data.train),
        "test_examples": len(data.test),
        "clients": [
            {
                "client": client,
                "examples": len(own),
                "labels": torch.bincount(own, minlength=data.classes).tolist(),
            }
            for client, own in enumerate(labels)
        ],
    }
