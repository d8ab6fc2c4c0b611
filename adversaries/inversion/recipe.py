"""Puts the parts of the attack together for one observation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsim import batchnorm, progress
from fedsim.adversaries.base import Observation, Reconstruction
from fedsim.adversaries.inversion import awareness, labels, objectives, priors, statistics
from fedsim.adversaries.inversion.engine import Prior, Problem, run_trial
from fedsim.adversaries.inversion.optimisers import SignedAdam
from fedsim.adversaries.inversion.victim import Victim, rebuild
from fedsim.errors import InputError

if TYPE_CHECKING:
    from fedsim.adversaries.inversion.geiping import Geiping


def invert(settings: Geiping, seen: Observation, device: torch.device, rng: torch.Generator) -> Reconstruction:
    """Run the attack: every restart, and the best of them by its own objective."""
    victim = rebuild(seen, device)
    objection = settings.objection(bool(batchnorm.layers(victim.model)))
    if objection:
        raise InputError(objection)
    norms = statistics.install(victim.model, settings.batchnorm, seen, device)
    guessed = labels.known(seen) if settings.labels == "known" else labels.idlg(victim)
    names = list(victim.parameters)
    target = [victim.target[name] for name in names]
    defenses = seen.facts["defenses"] if settings.aware else []
    matched = awareness.match(target, defenses)
    low, high = victim.normalise.box(target[0])
    problem = Problem(
        model=victim.model,
        parameters=victim.parameters,
        labels=guessed.to(device),
        objective=objectives.cosine(matched.target, matched.masks),
        prior=_prior(settings, norms),
        low=low,
        high=high,
    )
    total = settings.restarts * settings.iterations
    trials, starts = [], []
    for number in range(settings.restarts):
        starts.append(_first_guess(settings.initial, victim, rng).to(device))
        trials.append(
            run_trial(
                problem,
                starts[-1],
                SignedAdam(settings.step_size),
                settings.iterations,
                offset=number * settings.iterations,
                total=total,
            )
        )
    progress.report(total, total)
    place = min(range(len(trials)), key=lambda one: trials[one].objective)
    best = trials[place]
    return Reconstruction(
        images=_to_images(victim, best.guess),
        labels=guessed if guessed.dim() == 1 else guessed.argmax(1),
        objective=best.objective,
        iterations=sum(trial.steps for trial in trials),
        history=best.history,
        status=best.status,
        initial=_to_images(victim, starts[place]),
        notes=_notes(victim, [trial.objective for trial in trials]),
    )


def _to_images(victim: Victim, guess: Tensor) -> Tensor:
    return victim.normalise.inverse(guess).clamp(0, 1).cpu().contiguous()


def _first_guess(kind: str, victim: Victim, rng: torch.Generator) -> Tensor:
    shape = victim.shape
    if kind == "normal":
        guess = torch.randn(shape, generator=rng)
    elif kind == "uniform":
        guess = torch.rand(shape, generator=rng) * 2 - 1
    else:
        guess = torch.zeros(shape)
    return guess.contiguous(memory_format=torch.channels_last)


def _prior(settings: Geiping, norms: statistics.Norms) -> Prior | None:
    with_statistics = settings.bn_prior > 0 and bool(norms.wanted)
    if settings.tv == 0 and not with_statistics:
        return None

    def prior(x: Tensor) -> Tensor:
        value = settings.tv * priors.total_variation(x)
        if with_statistics:
            value = value + settings.bn_prior * priors.statistics_distance(norms.pairs())
        return value

    return prior


def _notes(victim: Victim, objectives_: list[float]) -> dict[str, object]:
    notes: dict[str, object] = {}
    if len(objectives_) > 1:
        notes["objectives of the restarts"] = objectives_
    if victim.facts["algorithm"] == "fedavg":
        notes["model"] = (
            f"the update of {victim.facts['num_steps']} local steps is taken for the direction of one gradient at the "
            "broadcast model"
        )
    return notes
