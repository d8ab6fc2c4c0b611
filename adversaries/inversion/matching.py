"""Puts the parts of an attack by optimisation together, for one victim or for several alike as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedsim import batchnorm, metrics
from fedsim.adversaries.base import Observation, Reconstruction, Situation
from fedsim.adversaries.inversion import awareness, engines, labels, last_layer, objectives, statistics
from fedsim.adversaries.inversion.awareness import Matched
from fedsim.adversaries.inversion.last_layer import LastLayer
from fedsim.adversaries.inversion.lbfgs import run_lbfgs
from fedsim.adversaries.inversion.local_steps import LocalSteps
from fedsim.adversaries.inversion.loop import Budget, Search, Trial, run
from fedsim.adversaries.inversion.optimisers import SGD, Adam, schedule
from fedsim.adversaries.inversion.starts import first_guess
from fedsim.adversaries.inversion.step import Guess, Knowledge, Plan, Weights
from fedsim.adversaries.inversion.victim import Victim, rebuild
from fedsim.errors import InputError
from fedsim.models import precode

if TYPE_CHECKING:
    from fedsim.adversaries.inversion.recipes.base import Inversion


@dataclass(frozen=True)
class Case:
    """One victim made ready: what a step does, what is known, and the first guesses of its restarts; matched: with what
    is known of its defenses.
    """

    victim: Victim
    plan: Plan
    knowledge: Knowledge
    starts: Guess
    labels: Tensor | None
    matched: Matched

    @property
    def box(self) -> tuple[Tensor, Tensor]:
        """(1, C, 1, 1) each: the lowest and the highest valid pixel, normalised."""
        images = self.starts["images"]
        low, high = (edge.to(images.dtype) for edge in self.victim.normalise.box(images))
        if not self.matched.symmetric:
            return low, high
        most = torch.maximum(low.abs(), high.abs())
        return -most, most


def invert(
    settings: Inversion, seen: Sequence[Observation], device: torch.device, rngs: Sequence[torch.Generator]
) -> list[Reconstruction]:
    """Attack every observation; those alike in all but their tensors run together where the engine can."""
    cases = [_case(settings, one, device, rng) for one, rng in zip(seen, rngs, strict=True)]
    if len(cases) > 1 and all(_alike(cases[0], case) for case in cases[1:]) and settings.optimiser != "lbfgs":
        return _search(settings, cases, rngs)
    return [_search(settings, [case], [rng])[0] for case, rng in zip(cases, rngs, strict=True)]


def _case(settings: Inversion, seen: Observation, device: torch.device, rng: torch.Generator) -> Case:
    victim = rebuild(seen, device)
    norms = statistics.install(victim.model, _checked(settings, victim), seen, device)
    local = _local(settings, victim)
    guessed = _labels(settings, seen, victim, rng)
    names = list(victim.parameters)
    matched = awareness.read(seen, victim, settings.objective, settings.tv_absolute, settings.aware)
    last = last_layer.read(victim) if settings.features and local is None else None
    knowledge: Knowledge = {
        "parameters": victim.parameters,
        "buffers": {name: value.detach() for name, value in victim.model.named_buffers()},
        "target": list(matched.target),
        "masks": [] if matched.masks is None else list(matched.masks),
        "maps": [list(one) for one in matched.given],
        "labels": torch.zeros(0) if guessed is None else guessed.to(device),
        "wanted": [tuple(pair) for pair in norms.wanted],
        "features": [] if last is None or guessed is None else _features(last, guessed).to(device),
    }
    weights = Weights(
        tv=settings.tv,
        tv_p=settings.tv_p,
        tv_q=settings.tv_q,
        tv_absolute=matched.tv_absolute,
        l2=settings.l2,
        statistics=settings.bn_prior,
        orthogonality=settings.orthogonality,
        features=settings.features if last is not None else 0.0,
        task=settings.task,
        task_kind=settings.task_kind,
        order_invariance=settings.order_invariance,
    )
    layers = objectives.layer_weights(settings.layers, len(names))
    plan = Plan(
        frame=victim.model,
        norms=norms,
        objective=objectives.named(matched.objective, settings.tag_scale),
        layers=layers,
        weights=weights,
        local=local,
        last=None if last is None else victim.model.get_submodule(last.name),
        maps=matched.maps,
    )
    count = victim.shape[0] * (local.epochs if local is not None and local.separate else 1)
    starts = []
    for _ in range(settings.restarts):
        start = first_guess(settings.initial, victim, count, rng, settings.patch, settings.initial_file)
        guess = {"images": start.to(device)}
        if guessed is None:
            guess["labels"] = labels.soft_start(victim, rng).to(device)
        starts.append(guess)
    stacked = {name: torch.stack([one[name] for one in starts]) for name in starts[0]}
    case = Case(victim, plan, knowledge, stacked, guessed, matched)
    case = _double(case) if settings.precision == "float64" else case
    # After the precision is settled: in float32, its own digits would end where those of float32 do.
    known = case.knowledge
    known["square"] = objectives.squared_length(known["target"], layers, known["masks"] or None)
    return case


def _checked(settings: Inversion, victim: Victim) -> str:
    """The BatchNorm mode, after a last look at whether the settings fit what was captured."""
    facts = victim.facts
    clients = max(1, len(facts.get("clients", [])))  # how a sum's images are shared among them makes no difference
    situation = Situation(
        model=facts["model"]["name"],
        has_batchnorm=bool(batchnorm.layers(victim.model)),
        batchnorm=facts["batchnorm"],
        algorithm=facts["algorithm"],
        one_gradient=facts["algorithm"] == "fedsgd" or (int(facts["num_steps"]) == 1 and not facts.get("weight_decay")),
        batch_sizes=tuple(len(part) for part in torch.arange(victim.shape[0]).tensor_split(clients)),
        aggregate=clients > 1,
    )
    objection = settings.objection(situation) or settings.objection_to(victim.model, situation)
    if objection:
        raise InputError(objection)
    return settings.batchnorm


def _labels(settings: Inversion, seen: Observation, victim: Victim, rng: torch.Generator) -> Tensor | None:
    """The labels to work with; None where they are sought."""
    return None if settings.labels == "joint" else labels.infer(settings.labels, seen, victim, rng)


def _local(settings: Inversion, victim: Victim) -> LocalSteps | None:
    facts = victim.facts
    if settings.local_steps == "one_gradient" or facts["algorithm"] == "fedsgd":
        return None
    count, size = victim.shape[0], int(facts["batch_size"])
    return LocalSteps(
        batches=tuple(min(size, count - first) for first in range(0, count, size)),
        steps=int(facts["num_steps"]),
        rate=float(facts["learning_rate"]),
        momentum=float(facts["momentum"]),
        weight_decay=float(facts["weight_decay"]),
        separate=settings.separate_epochs,
    )


def _features(last: LastLayer, guessed: Tensor) -> Tensor:
    """What goes into the last layer, (N, units): the rows of its weight gradient over those of its bias gradient.

    The row of a class is the sum over the batch of (probability - label) times the features, so its quotient is that of
    the class's own image as far as the others' probabilities are small (Geiping et al. 2020, proposition 3.1). Images
    of one class get the same.
    """
    assert last.bias is not None  # else `features_refusal` refuses
    chosen = guessed if guessed.dim() == 1 else guessed.argmax(1)
    return (last.weight[chosen] / last.bias[chosen][:, None]).float()


def _double(case: Case) -> Case:
    def wide(value: Tensor) -> Tensor:
        return value.double() if value.is_floating_point() else value

    case.plan.frame.to(torch.float64)
    knowledge = torch.utils._pytree.tree_map(wide, case.knowledge)
    return replace(case, knowledge=knowledge, starts={name: wide(value) for name, value in case.starts.items()})


def _alike(one: Case, other: Case) -> bool:
    """Whether two victims differ in nothing but the values of tensors."""
    facts = [
        {key: case.victim.facts[key] for key in ("model", "image_shape", "classes", "mean", "std", "batchnorm")}
        for case in (one, other)
    ]
    trees = [torch.utils._pytree.tree_flatten(case.knowledge) for case in (one, other)]
    shapes = [[(value.shape, value.dtype) for value in leaves] for leaves, _ in trees]
    return (
        facts[0] == facts[1]
        and (one.plan.local, one.plan.maps, one.plan.weights) == (other.plan.local, other.plan.maps, other.plan.weights)
        and (one.matched.objective, one.matched.symmetric) == (other.matched.objective, other.matched.symmetric)
        and trees[0][1] == trees[1][1]
        and shapes[0] == shapes[1]
    )


def _search(settings: Inversion, cases: Sequence[Case], rngs: Sequence[torch.Generator]) -> list[Reconstruction]:
    """Run every restart of every case, and return for each the best of them by its own objective."""
    first = cases[0]
    guess = {name: torch.cat([case.starts[name] for case in cases]) for name in first.starts}
    optimiser: Adam | SGD = SGD(settings.step_size, settings.signed)
    if settings.optimiser != "sgd":
        optimiser = Adam(settings.step_size, settings.signed)
    images = first.starts["images"]
    low, high = first.box
    search = Search(
        optimiser,
        schedule(settings.schedule, settings.iterations, settings.warm_up),
        low if settings.box else None,
        high if settings.box else None,
        settings.langevin,
        settings.group,
        settings.restarts,
    )
    budget = Budget(settings.iterations, settings.patience, settings.time_limit)
    victims = [case.knowledge for case in cases]
    if settings.optimiser == "lbfgs":
        one = {name: value[:1] for name, value in guess.items()}
        # Between its steps the line search asks for values, so that there is no iteration to capture as a whole.
        wanted = "eager" if settings.engine == "auto" and images.device.type == "cuda" else settings.engine
        steps = settings.restarts * settings.iterations
        engine = engines.choose(wanted, first.plan, victims, one, 1, 1, steps)
        trials = []
        for number in range(settings.restarts):
            start = {name: value[number : number + 1] for name, value in guess.items()}
            trials.append(run_lbfgs(engine, start, search, budget, number * settings.iterations, steps))
    else:
        engine = engines.choose(
            settings.engine, first.plan, victims, guess, settings.restarts, settings.together, settings.iterations
        )
        trials = run(engine, guess, search, budget, rngs)
    size = settings.restarts
    return [
        _result(settings, case, trials[place * size : (place + 1) * size], engine) for place, case in enumerate(cases)
    ]


def _result(settings: Inversion, case: Case, trials: Sequence[Trial], engine: engines.Engine) -> Reconstruction:
    place = min(range(len(trials)), key=lambda one: trials[one].objective)
    best, victim = trials[place], case.victim
    guessed = case.labels if case.labels is not None else best.guess["labels"].cpu()
    return Reconstruction(
        images=_to_images(victim, best.guess["images"], case.plan.local),
        labels=guessed if guessed.dim() == 1 else guessed.argmax(1),
        objective=best.objective,
        iterations=sum(trial.steps for trial in trials),
        history=best.history,
        status=best.status,
        initial=_to_images(victim, case.starts["images"][place], case.plan.local),
        raw=None if _in_epochs(case.plan.local) else best.guess["images"].float().cpu().contiguous(),
        notes=_notes(settings, case, trials, engine),
    )


def _in_epochs(local: LocalSteps | None) -> bool:
    """Whether there is a guess of each image for every local epoch."""
    return local is not None and local.separate and local.epochs > 1


def _to_images(victim: Victim, guess: Tensor, local: LocalSteps | None) -> Tensor:
    images = victim.normalise.inverse(guess.float()).clamp(0, 1).cpu().contiguous()
    if local is None or not _in_epochs(local):
        return images
    # Each epoch has found the images in an order of its own: pair them with those of the first epoch, then take means.
    epochs = images.unflatten(0, (local.epochs, -1))
    paired = [epochs[0], *(epoch[metrics.match(epoch, epochs[0])] for epoch in epochs[1:])]
    return torch.stack(paired).mean(0)


def _notes(settings: Inversion, case: Case, trials: Sequence[Trial], engine: engines.Engine) -> dict[str, object]:
    victim = case.victim
    notes: dict[str, object] = {"engine": engine.name}
    if case.matched.said:
        notes["defenses known"] = "; ".join(case.matched.said)
    if engine.notes:
        notes["about the engine"] = "; ".join(engine.notes)
    if len(trials) > 1:
        notes["objectives of the restarts"] = [trial.objective for trial in trials]
    several = victim.facts["algorithm"] == "fedavg" and int(victim.facts["num_steps"]) > 1
    if several and settings.local_steps == "one_gradient":
        notes["model"] = (
            f"the update of {victim.facts['num_steps']} local steps is taken for the direction of one gradient at the "
            "broadcast model"
        )
    if any(isinstance(module, nn.modules.dropout._DropoutNd) for module in victim.model.modules()):
        notes["dropout"] = "left out, since only the client knows what it drew"
    if precode.bottlenecks(victim.model):
        notes["bottleneck"] = "its code is taken for its mean, since only the client knows what noise it drew"
    if len(victim.facts.get("clients", [])) > 1:
        notes["aggregate"] = f"the sum of {len(victim.facts['clients'])} clients' updates, taken for one batch's"
    return notes
