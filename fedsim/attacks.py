"""Run the jobs of adversaries, one after another, and score what comes back. A failing plugin fails alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedsim import progress, scoring, seeding
from fedsim.adversaries.base import Reconstruction
from fedsim.adversaries.storage import JobStore
from fedsim.experiment import AdversaryEntry, Experiment
from fedsim.progress import Screen
from fedsim.report.pictures import comparison
from fedsim.runs import RunFolder, append_line


@dataclass(frozen=True)
class Attack:
    """A job waiting to be run: whose it is, its address, and whose data of which round it is after."""

    entry: AdversaryEntry
    job: str
    client: int
    round: int


def run_attacks(
    attacks: Sequence[Attack],
    experiment: Experiment,
    folder: RunFolder,
    device: torch.device,
    screen: Screen,
    warn: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Run and score every job; a line of attacks.jsonl each, in the order of the experiment file.

    An attack draws from a generator that its job's content alone determines: the same job gives the same result in
    whatever company it runs.
    """
    position = {entry.id: place for place, entry in enumerate(experiment.adversaries)}
    lines = []
    for attack in sorted(attacks, key=lambda one: (position.get(one.entry.id, 0), one.round, one.client)):
        line = _run(attack, experiment, folder, device, screen)
        if line["status"] == "failed":
            warn(
                f"adversary '{attack.entry.id}' failed on client {attack.client}, round {attack.round}: {line['error']}"
            )
        append_line(folder.attacks, line)
        lines.append(line)
    return lines


def _run(
    attack: Attack, experiment: Experiment, folder: RunFolder, device: torch.device, screen: Screen
) -> dict[str, Any]:
    entry = attack.entry
    name = f"{entry.id}, client {attack.client}, round {attack.round}"
    line: dict[str, Any] = {
        "adversary": entry.id,
        "plugin": entry.plugin.name,
        "client": attack.client,
        "round": attack.round,
        "vantage": entry.vantage,
        "knows": list(entry.knows),
        "aware": "defenses" in entry.knows,
        "defenses": [defense.describe() for defense in experiment.clients.training(attack.client).defenses],
        "job": attack.job,
    }
    start = time.perf_counter()
    screen.attack(name, 0, 1, "")
    try:
        truth = scoring.read_truth(folder.truth, attack.client, attack.round)
        job = JobStore(folder.captures, folder.jobs).get(attack.job)
        with progress.listening(lambda done, total, note: screen.attack(name, done, total, note)):
            found = entry.plugin.settings.attack(job, device, seeding.generator(experiment.seed, "attack", attack.job))
        _check(found, tuple(truth.images.shape[1:]))
    except Exception as error:
        screen.attack(name, 1, 1, "failed")
        return {
            **line,
            "status": "failed",
            "error": f"{type(error).__name__}: {error}",
            "seconds": time.perf_counter() - start,
        }
    seconds = time.perf_counter() - start
    before = {}
    if found.initial is not None:
        floor = scoring.score(found.initial.cpu(), None, truth, experiment.scores.lpips).fields
        before = {f"{key}_before": floor[key] for key in ("psnr", "ssim", "lpips")}
    screen.attack(name, 1, 1, f"objective {found.objective:.4g}")
    result = scoring.score(found.images.cpu(), found.labels, truth, experiment.scores.lpips)
    picture = folder.reconstructions / f"{entry.id}-c{attack.client}-r{attack.round}-{attack.job[:8]}.png"
    comparison(result.truth.numpy(), result.guess.numpy(), picture)
    return {
        **line,
        **result.fields,
        **before,
        "status": found.status,
        "error": None,
        "iterations": found.iterations,
        "seconds": seconds,
        "objective": found.objective,
        "history": [list(pair) for pair in found.history],
        "notes": dict(found.notes),
        "picture": str(picture.relative_to(folder.path)),
    }


def _check(found: Reconstruction, shape: tuple[int, ...]) -> None:
    """A plugin's answer must be what the contract says, or it is the plugin's failure."""
    if not isinstance(found, Reconstruction):
        raise TypeError(f"attack returned {type(found).__name__}, not a Reconstruction")
    images = found.images
    if not isinstance(images, torch.Tensor) or images.dim() != 4 or len(images) == 0:
        raise ValueError(f"images must be a tensor (N, C, H, W), not {getattr(images, 'shape', type(images).__name__)}")
    if tuple(images.shape[1:]) != shape:
        raise ValueError(f"images have shape {tuple(images.shape[1:])} each, but the data set's have {shape}")
    if not torch.isfinite(images).all():
        raise ValueError("the returned images hold NaN or Inf")
    if found.labels is not None and len(found.labels) != len(images):
        raise ValueError(f"{len(images)} images, but {len(found.labels)} labels")
