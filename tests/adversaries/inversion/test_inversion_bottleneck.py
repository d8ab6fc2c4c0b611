"""Attacks on a model with PRECODE's variational bottleneck, whose noise the client alone knows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attacking import CPU, attack, quality
from torch import Tensor

from fedsim.adversaries.base import Job, Observation
from fedsim.adversaries.inversion import objectives
from fedsim.adversaries.inversion.calculus import TRANSFORMED
from fedsim.adversaries.inversion.recipes.matching import Geiping
from fedsim.adversaries.inversion.recipes.phong import Phong
from fedsim.adversaries.inversion.statistics import Norms
from fedsim.adversaries.inversion.step import Knowledge, Plan, step
from fedsim.adversaries.inversion.victim import rebuild
from fedsim.data.dataset import Normalisation
from fedsim.models import precode
from fedsim.models.building import build
from fedsim.models.catalog import MLP
from fedsim.models.loss import training_loss
from fedsim.protocol import Batch

SETTINGS = MLP(hidden=(16,), activation="relu", bottleneck=8, bottleneck_beta=0.01)
Observe = Callable[..., tuple[Observation, Batch]]


def observed(victim_of: Observe, count: int, noise: int | None) -> tuple[Observation, Batch]:
    """What a link shows of one step of a client that drew its noise from a seed; None: of one that used the mean."""
    seen, batch = victim_of(count)
    model = build(SETTINGS, (1, 8, 8), 10, seed=0)
    if noise is None:
        model.eval()
    else:
        precode.seed(model, torch.Generator().manual_seed(noise))
    own = dict(model.named_parameters())
    loss = training_loss(model, model(normalised(seen, batch)), batch.labels)
    update = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
    tensors = {f"model/{key}": value.detach() for key, value in own.items()}
    tensors |= {f"update/{key}": value for key, value in update.items()} | {"known/labels": batch.labels}
    settings = {"hidden": [16], "activation": "relu", "bottleneck": 8, "bottleneck_beta": 0.01}
    return replace(seen, tensors=tensors, facts={**seen.facts, "model": {"name": "mlp", "settings": settings}}), batch


def normalised(seen: Observation, batch: Batch) -> Tensor:
    return Normalisation(tuple(seen.facts["mean"]), tuple(seen.facts["std"]))(batch.images)


def plan_of(seen: Observation) -> tuple[Plan, Knowledge]:
    victim = rebuild(seen, CPU)
    plan = Plan(victim.model.double(), Norms((), ()), objectives.named("squared_l2", 0.0), [1.0] * len(victim.target))
    knowledge: Knowledge = {
        "parameters": {name: value.double() for name, value in victim.parameters.items()},
        "buffers": {},
        "target": [value.double() for value in victim.target.values()],
        "masks": [],
        "labels": seen.tensors["known/labels"],
        "wanted": [],
        "features": [],
    }
    return plan, knowledge


def test_the_frame_takes_the_mean_and_needs_no_generator(victim_of: Observe) -> None:
    seen, batch = observed(victim_of, 2, noise=1)
    victim = rebuild(seen, CPU)
    assert set(victim.parameters) == set(dict(victim.model.named_parameters()))
    assert victim.model.training
    assert not victim.model.bottleneck.training
    shared = torch.get_rng_state()
    images = normalised(seen, batch)
    assert torch.equal(victim.model(images), victim.model(images))
    assert torch.equal(shared, torch.get_rng_state())
    copy.deepcopy(victim.model)  # as label inference does, in the midst of an attack


def test_the_objective_has_the_penalty(victim_of: Observe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a client that used the mean, the truth gives the very gradient that was sent."""
    seen, batch = observed(victim_of, 2, noise=None)
    plan, knowledge = plan_of(seen)
    guess = {"images": normalised(seen, batch).double()}
    at_truth, _ = step(plan, knowledge, guess)
    assert float(at_truth) < 1e-10
    monkeypatch.setattr(plan.frame.bottleneck, "beta", 0.0)
    without, _ = step(plan, knowledge, guess)
    assert float(without) > 1e-6


def test_a_step_is_the_same_recorded_transformed_and_traced(victim_of: Observe) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    plan, knowledge = plan_of(observed(victim_of, 2, noise=1)[0])
    stack = torch.randn(3, 2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    recorded = [step(plan, knowledge, {"images": one}) for one in stack]
    # The derivative, by differences.
    along = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    ends = [float(step(plan, knowledge, {"images": stack[0] + h * along})[0]) for h in (1e-6, -1e-6)]
    slope = float((recorded[0][1]["images"] * along).sum())
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)

    many = torch.vmap(lambda one: step(plan, knowledge, {"images": one}, TRANSFORMED), randomness="error")
    values, slopes = many(stack)
    torch.testing.assert_close(values, torch.stack([value for value, _ in recorded]))
    torch.testing.assert_close(slopes["images"], torch.stack([one["images"] for _, one in recorded]))
    traced = make_fx(lambda known, one: step(plan, known, {"images": one}))(knowledge, stack[0])
    value, again = traced(knowledge, stack[1])
    torch.testing.assert_close(value, recorded[1][0])
    torch.testing.assert_close(again["images"], recorded[1][1]["images"])
    assert plan.frame.bottleneck._penalty is None


def test_attacks_by_optimisation_run(victim_of: Observe) -> None:
    seen, _ = observed(victim_of, 2, noise=1)
    settings = Geiping(iterations=4, restarts=2, together=2, engine="eager")
    first, second = attack(settings, seen), attack(settings, seen)
    assert first.images is not None and second.images is not None
    assert torch.equal(first.images, second.images)


@pytest.mark.parametrize("method", ["bias", "llg", "llg_model", "ilrg"])
def test_labels_are_inferred(method: Any, victim_of: Observe) -> None:
    seen, batch = observed(victim_of, 1, noise=1)
    found = attack(Geiping(iterations=1, engine="eager", labels=method), seen)
    assert torch.equal(found.labels, batch.labels)


def test_what_a_first_linear_layer_gives_away_it_gives_away_behind_any_noise(victim_of: Observe) -> None:
    """Balunovic et al. (ICLR 2022), section 5: a single image stands in the gradient of the first layer, exactly."""
    seen, batch = observed(victim_of, 1, noise=1)
    found = Phong().attack(Job((seen,)), CPU, torch.Generator().manual_seed(0))
    assert quality(found, batch) > 60


def test_an_objective_without_what_is_behind_the_noise_comes_nearer_to_the_truth(victim_of: Observe) -> None:
    """At the truth, what is left of the objective is the noise's doing. Under such a mask it is less than half."""
    whole = masked = 0.0
    for noise in range(1, 6):
        seen, batch = observed(victim_of, 2, noise)
        plan, knowledge = plan_of(seen)
        plan = replace(plan, objective=objectives.named("cosine", 0.0))
        guess = {"images": normalised(seen, batch).double()}
        behind = precode.parameters_behind(plan.frame)
        masks = [torch.full_like(value, name not in behind) for name, value in knowledge["parameters"].items()]
        whole += float(step(plan, knowledge, guess)[0])
        masked += float(step(plan, {**knowledge, "masks": masks}, guess)[0])
    assert 0.05 < masked < whole / 2
