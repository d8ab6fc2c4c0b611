"""The lines of attacks.jsonl: what an attack found, checked and scored against the truth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fedsim import answers, scoring
from fedsim.adversaries.base import Reconstruction
from fedsim.attack import Attack
from fedsim.attackers.base import Failure, Found
from fedsim.data.dataset import Normalisation
from fedsim.data.federation import load_data, load_federation
from fedsim.experiment import Experiment
from fedsim.report.pictures import comparison
from fedsim.runs import RunFolder
from fedsim.scoring import Truth


def line_of(
    attack: Attack, found: Found, seconds: float, experiment: Experiment, folder: RunFolder, truth_at: Path
) -> dict[str, Any]:
    """The line of an attack: its answer, scored. seconds: of its wall time. truth_at: where the truth is, for now."""
    entry = attack.entry
    line: dict[str, Any] = {
        "adversary": attack.title,
        "entry": entry.id,
        "plugin": entry.plugin.name,
        "client": attack.clients[0] if len(attack.clients) == 1 else None,
        "clients": list(attack.clients),
        "round": attack.round,
        "rounds": list(attack.rounds),
        "vantage": entry.vantage,
        "knows": list(entry.knows),
        "aware": "defenses" in entry.knows,
        "defenses": _defenses(attack.clients, experiment),
        "job": attack.job,
        "combined": attack.combined,
    }
    try:
        if isinstance(found, Failure):
            return {**line, "status": "failed", "error": str(found), "seconds": seconds}
        truth = scoring.read_truth(truth_at, attack.clients, attack.rounds)
        answers.check(found, tuple(truth.images.shape[1:]), max(len(truth), _announced(attack.clients, experiment)))
        scores = _scores(attack, found, truth, experiment, folder)
    except Exception as error:
        return {**line, "status": "failed", "error": str(Failure.of(error)), "seconds": seconds}
    return {
        **line,
        **scores,
        "status": found.status,
        "error": None,
        "iterations": int(found.iterations),
        "seconds": seconds,
        "objective": float(found.objective),
        "history": [[int(step), float(value)] for step, value in found.history],
        "notes": dict(found.notes),
    }


def _announced(clients: Sequence[int], experiment: Experiment) -> int:
    """How many images the clients say that they have used, where defenses draw their number by chance."""
    trainings = [experiment.clients.training(client) for client in clients]
    if not any(hasattr(defense.settings, "gradient") for one in trainings for defense in one.defenses):
        return 0
    if experiment.clients.algorithm == "fedavg" and not all(one.local_steps for one in trainings):
        # Epochs: at most all that the clients have.
        data, count = experiment.data, experiment.clients.count
        shares = load_federation(data.dataset.settings, data.partition.settings, count, experiment.seed).shares
        return sum(len(shares[client]) for client in clients)
    return sum(one.batch_size * (one.local_steps or 1) for one in trainings)


def _defenses(clients: Sequence[int], experiment: Experiment) -> list[dict[str, Any]]:
    """The defenses of a client, or of all whose updates were summed; one that not all of them have says whose it is.
    A bottleneck in the model is one of everybody's.
    """
    units = getattr(experiment.model.settings, "bottleneck", 0)
    model = [{"name": "precode", "bottleneck": units}] if units else []
    own = {client: experiment.clients.training(client).defenses for client in clients}
    if len(set(own.values())) == 1:
        return model + [defense.describe() for defense in own[clients[0]]]
    out: list[dict[str, Any]] = model
    for defense in dict.fromkeys(itertools.chain(*own.values())):
        whose = [client for client in clients if defense in own[client]]
        out.append(defense.describe() | ({"clients": whose} if len(whose) < len(own) else {}))
    return out


def _scores(
    attack: Attack, found: Reconstruction, truth: Truth, experiment: Experiment, folder: RunFolder
) -> dict[str, Any]:
    before = {}
    if found.initial is not None:
        floor = scoring.score(found.initial.cpu(), None, truth, experiment.scores.lpips).fields
        before = {f"{key}_before": floor[key] for key in ("psnr", "ssim", "lpips")}
    if found.images is None:
        assert found.labels is not None
        return {**scoring.score_labels(found.labels, truth, experiment.scores.lpips), "picture": None}
    images = found.images.cpu().to(torch.float32).clamp(0, 1)
    ids, labels = None if found.ids is None else found.ids.cpu(), found.labels
    order = scoring.pairing(images, ids, truth)
    if ids is not None and labels is not None:
        # With ids there may be more images than in the truth; the labels of those would score for their number.
        labels = labels.cpu()[order[order >= 0]]
    result = scoring.score(images, labels, truth, experiment.scores.lpips, order)
    fields = result.fields
    if "paper" in experiment.scores.protocols:
        values = scoring.as_published(images, ids, truth, experiment.scores.lpips, _normalisation(experiment))
        fields["per_image"]["lpips_paper"] = values
        fields["lpips_paper"] = None if values is None else sum(values) / len(values)
    # A file's name has an end; the job's address tells such sums apart.
    clients = "-".join(map(str, attack.clients)) if len(attack.clients) < 9 else f"sum{len(attack.clients)}"
    picture = folder.reconstructions / f"{attack.title}-c{clients}-r{attack.round}-{attack.job[:8]}.png"
    comparison(result.truth.numpy(), result.guess.numpy(), picture)
    return {**fields, **before, "picture": str(picture.relative_to(folder.path))}


def _normalisation(experiment: Experiment) -> Normalisation:
    return load_data(experiment.data.dataset.settings).normalisation
