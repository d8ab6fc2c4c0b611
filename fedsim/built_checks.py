"""What only the built model, and the data, can show to be wrong with an experiment. Asked before round 0."""

from __future__ import annotations

import copy
from dataclasses import replace

from fedsim import batchnorm
from fedsim.adversaries import threat
from fedsim.clients.workbench import Workbench
from fedsim.errors import InputError
from fedsim.experiment import Experiment


def check_built(experiment: Experiment, place: Workbench) -> None:
    """Raise InputError for what the model's layers do not allow, and, of a model from elsewhere (torchvision:NAME), its
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
