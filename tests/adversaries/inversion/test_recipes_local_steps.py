"""The recipes against updates of FedAvg, as fedsim's own client computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attacking import at_start, attack, quality, starting_at
from torch import Tensor

from fedsim.adversaries.base import Observation
from fedsim.adversaries.inversion.recipes.matching import Dimitrov, Geiping, GeipingFedAvg
from fedsim.clients.training import train
from fedsim.data.dataset import Normalisation
from fedsim.experiment import LocalTraining
from fedsim.models.building import build
from fedsim.models.catalog import MLP
from fedsim.protocol import Batch

VictimOf = Callable[..., tuple[Observation, Batch]]
SETTINGS = MLP(hidden=(64,), activation="tanh")
RATE = 0.5


def fedavg(
    victim_of: VictimOf,
    count: int,
    orders: Sequence[Sequence[int]],
    size: int = 2,
    steps: int | None = None,
    one_class: bool = False,
    **training: float,
) -> tuple[Observation, Batch]:
    """What a link shows of a client that went over its images once in each of these orders, and its images."""
    seen, batch = victim_of(count)
    if one_class:
        batch = Batch(batch.images, torch.full((count,), 3))
    portions = [part for order in orders for part in torch.tensor(order).split(size)][:steps]
    batches = [Batch(batch.images[part], batch.labels[part]) for part in portions]
    local = {"learning_rate": RATE, "momentum": 0.0, "weight_decay": 0.0, **training}
    settings = LocalTraining(batch_size=size, **local)  # type: ignore[arg-type]
    normalise = Normalisation(tuple(seen.facts["mean"]), tuple(seen.facts["std"]))
    model = build(SETTINGS, (1, 8, 8), 10, seed=0)
    update = train(model, seen.part("model"), batches, settings, "fedavg", "local", normalise).update
    tensors: dict[str, Tensor] = {**seen.tensors, "known/labels": batch.labels}
    tensors |= {f"update/{name}": value for name, value in update.tensors.items()}
    facts: dict[str, Any] = {**seen.facts, **local, "algorithm": "fedavg", "batch_size": size}
    return Observation(1, 0, "link", tensors, {**facts, "num_steps": len(batches)}), batch


def size_of(seen: Observation) -> float:
    """What is matched, squared: the update over its rate and number of steps."""
    scale = seen.facts["learning_rate"] * seen.facts["num_steps"]
    return sum((value / scale).square().sum().item() for value in seen.part("update").values())


def exactly(images: Tensor, folder: Path, **more: Any) -> dict[str, Any]:
    return {**starting_at(images, folder), "precision": "float64", "objective": "squared_l2", **more}


@pytest.mark.parametrize(
    "training",
    [{}, {"momentum": 0.9}, {"weight_decay": 0.1}, {"momentum": 0.5, "weight_decay": 0.1, "steps": 4}],
)
def test_at_the_truth_the_unrolled_update_is_the_one_that_was_sent(
    training: dict[str, Any], victim_of: VictimOf, tmp_path: Path
) -> None:
    """Five images in batches of two, two and one, gone over twice."""
    seen, batch = fedavg(victim_of, 5, [range(5), range(5)], **training)
    size = size_of(seen)
    assert at_start(attack(GeipingFedAvg(**exactly(batch.images, tmp_path)), seen)) < 1e-9 * size
    assert at_start(attack(GeipingFedAvg(**exactly(1 - batch.images, tmp_path)), seen)) > 0.1 * size
    both = torch.cat([batch.images, batch.images])
    assert at_start(attack(Dimitrov(**exactly(both, tmp_path)), seen)) < 1e-9 * size


def test_epochs_of_other_orders_are_matched_by_a_guess_for_each_and_not_by_one_for_all(
    victim_of: VictimOf, tmp_path: Path
) -> None:
    """Of images of one class: the labels are taken to stand in the same order in every epoch."""
    order = [2, 3, 0, 1]
    seen, batch = fedavg(victim_of, 4, [range(4), order], one_class=True)
    size = size_of(seen)
    both = torch.cat([batch.images, batch.images[order]])
    found = attack(Dimitrov(**exactly(both, tmp_path, step_size=1e-6)), seen)
    assert at_start(found) < 1e-9 * size
    # Each image is the mean of what is the same one in every epoch.
    torch.testing.assert_close(found.images, batch.images, rtol=0, atol=1e-5)
    assert at_start(attack(GeipingFedAvg(**exactly(batch.images, tmp_path)), seen)) > 1e-6 * size


def test_one_local_step_is_a_gradient_in_its_size_too(victim_of: VictimOf, tmp_path: Path) -> None:
    seen, batch = fedavg(victim_of, 2, [range(2)])
    size = size_of(seen)
    for settings in (Geiping(**exactly(batch.images, tmp_path)), GeipingFedAvg(**exactly(batch.images, tmp_path))):
        assert at_start(attack(settings, seen)) < 1e-9 * size
    found = attack(Geiping(iterations=300, tv=0, objective="squared_l2", signed=False, engine="eager"), seen)
    assert quality(found, batch) > 30
    assert "model" not in found.notes


def test_several_steps_taken_for_a_gradient_are_said_to_be(victim_of: VictimOf) -> None:
    seen, _ = fedavg(victim_of, 4, [range(4)])
    assert "2 local steps" in attack(Geiping(iterations=2, engine="eager"), seen).notes["model"]
    assert "model" not in attack(GeipingFedAvg(iterations=2, engine="eager"), seen).notes


def test_unrolling_recovers_what_one_gradient_cannot(victim_of: VictimOf) -> None:
    seen, batch = fedavg(victim_of, 4, [range(4)] * 3, momentum=0.5, learning_rate=0.1)
    options: dict[str, Any] = {"iterations": 300, "tv": 0, "bn_prior": 0, "engine": "eager"}
    unrolled = attack(GeipingFedAvg(**options), seen)
    assert quality(unrolled, batch) > 40
    assert quality(unrolled, batch) > quality(attack(Geiping(**options), seen), batch) + 10


def test_dimitrov_recovers_images_that_each_epoch_used_in_another_order(victim_of: VictimOf) -> None:
    seen, batch = fedavg(victim_of, 2, [[0, 1], [1, 0]], size=1, learning_rate=0.3)
    options: dict[str, Any] = {"iterations": 300, "tv": 0, "bn_prior": 0, "engine": "eager"}
    found = attack(Dimitrov(**options), seen)
    assert found.images is not None and found.initial is not None
    assert found.images.shape == found.initial.shape == (2, 1, 8, 8), "one image each, of both epochs together"
    assert quality(found, batch) > 14
    # Neither without their agreement, nor with one order for all epochs.
    loose = attack(Dimitrov(**{**options, "order_invariance": 0.0}), seen)
    assert quality(found, batch) > quality(loose, batch) + 3
    assert quality(found, batch) > quality(attack(GeipingFedAvg(**options), seen), batch) + 3


def test_labels_that_are_sought_and_several_restarts_go_with_local_steps(victim_of: VictimOf) -> None:
    seen, _ = fedavg(victim_of, 3, [range(3), range(3)])
    for settings in (
        GeipingFedAvg(labels="joint", iterations=3, restarts=2, engine="eager", together=2),
        Dimitrov(labels="joint", iterations=3, engine="eager", together=1),
        GeipingFedAvg(optimiser="lbfgs", schedule="constant", signed=False, iterations=3, engine="eager"),
    ):
        found = attack(settings, seen)
        assert found.objective < found.history[0][1]
        assert found.images is not None and found.images.shape == (3, 1, 8, 8)
