"""The plugin `geiping` as a run uses it: from an observation to a reconstruction."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedsim import metrics
from fedsim.adversaries.base import Job, Observation, Reconstruction
from fedsim.adversaries.inversion import labels
from fedsim.adversaries.inversion.geiping import Geiping
from fedsim.adversaries.inversion.victim import rebuild
from fedsim.clients.defenses.pruning import GradientPruning
from fedsim.errors import InputError
from fedsim.models.catalog import ConvNet6, PreActResNet18
from fedsim.protocol import Batch

VictimOf = Callable[..., tuple[Observation, Batch]]
CPU = torch.device("cpu")
SMOOTH = {"activation": "tanh", "pooling": "avg", "init": "kaiming"}


def attack(settings: Geiping, seen: Observation, seed: int = 0) -> Reconstruction:
    (job,) = settings.capture(seen)
    assert job == Job((seen,))
    return settings.attack(job, CPU, torch.Generator().manual_seed(seed))


def quality(found: Reconstruction, batch: Batch) -> float:
    return metrics.psnr(found.images[metrics.match(found.images, batch.images)], batch.images).min().item()


def test_the_settings_are_read_without_torch() -> None:
    code = (
        "import sys; from fedsim.adversaries.inversion.geiping import Geiping; Geiping().needs; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_needs_follow_the_settings() -> None:
    always = {"global_model", "update", "num_examples"}
    cases: list[tuple[Geiping, set[str]]] = [
        (Geiping(), {"labels"}),
        (Geiping(labels="idlg"), set()),
        (Geiping(batchnorm="exact"), {"labels", "batch_statistics"}),
        (Geiping(batchnorm="own_statistics"), {"labels", "batch_statistics"}),
        (Geiping(batchnorm="infer"), {"labels", "running_statistics"}),
        (Geiping(batchnorm="proxy"), {"labels", "running_statistics"}),
        (Geiping(aware=True), {"labels", "defenses"}),
    ]
    for settings, extra in cases:
        assert settings.needs == always | extra
        assert settings.powers == frozenset()


def test_digits_are_recovered_from_the_gradient_of_an_mlp(victim_of: VictimOf) -> None:
    seen, batch = victim_of(2)
    found = attack(Geiping(iterations=300, tv=0), seen)
    assert quality(found, batch) > 30
    assert found.status == "done"
    assert found.iterations == 300
    assert found.images.shape == (2, 1, 8, 8)
    assert found.images.dtype == torch.float32
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert found.labels is not None and torch.equal(found.labels, batch.labels)
    assert found.initial is not None and quality(Reconstruction(found.initial, None, 0, 0), batch) < 12


def test_digits_are_recovered_from_the_gradient_of_a_convolutional_network(victim_of: VictimOf) -> None:
    seen, batch = victim_of(2, ConvNet6(width=8, hidden=32, **SMOOTH), "convnet6")  # type: ignore[arg-type]
    assert quality(attack(Geiping(iterations=200, tv=0), seen), batch) > 25


def test_a_job_and_a_seed_determine_the_result(victim_of: VictimOf) -> None:
    seen, _ = victim_of(2)
    settings = Geiping(iterations=30)
    before = torch.random.get_rng_state()
    first, second, other = attack(settings, seen), attack(settings, seen), attack(settings, seen, seed=1)
    assert torch.equal(first.images, second.images)
    assert first.history == second.history
    assert not torch.equal(first.images, other.images)
    assert torch.equal(torch.random.get_rng_state(), before), "the simulation's own draws must not be disturbed"


def test_of_several_trials_the_one_with_the_least_objective_is_returned(victim_of: VictimOf) -> None:
    seen, _ = victim_of(2)
    found = attack(Geiping(iterations=40, restarts=3), seen)
    every = found.notes["objectives of the restarts"]
    assert len(every) == 3
    assert found.objective == min(every) < max(every)
    assert found.iterations == 120


@pytest.mark.parametrize("initial", ["normal", "uniform", "zeros"])
def test_every_first_guess_lies_in_the_box_or_is_clipped_to_it(initial: Any, victim_of: VictimOf) -> None:
    found = attack(Geiping(iterations=2, initial=initial), victim_of(1)[0])
    assert found.initial is not None
    assert found.initial.min() >= 0
    assert found.initial.max() <= 1
    if initial == "zeros":
        torch.testing.assert_close(found.initial, torch.full((1, 1, 8, 8), 0.3))  # the data set's mean


def test_an_attacker_who_knows_of_the_pruning_sees_more(victim_of: VictimOf) -> None:
    seen, batch = victim_of(2, None, "mlp", (GradientPruning(0.8),))
    facts = {**seen.facts, "defenses": [{"name": "gradient_pruning", "ratio": 0.8}]}
    seen = Observation(1, 0, "link", seen.tensors, facts)
    unaware = attack(Geiping(iterations=300, tv=0), seen)
    aware = attack(Geiping(iterations=300, tv=0, aware=True), seen)
    assert quality(aware, batch) > quality(unaware, batch) + 3


def test_a_nan_in_the_update_ends_as_a_finite_picture_with_the_status_nan(victim_of: VictimOf) -> None:
    seen, _ = victim_of(1)
    tensors = {**seen.tensors, "update/fc1.bias": seen.tensors["update/fc1.bias"] * float("nan")}
    found = attack(Geiping(iterations=10), Observation(1, 0, "link", tensors, seen.facts))
    assert found.status == "nan"
    assert torch.isfinite(found.images).all()


def test_a_fedavg_update_is_attacked_as_a_gradient_and_the_notes_say_so(victim_of: VictimOf) -> None:
    seen, _ = victim_of(2, algorithm="fedavg", num_steps=5)
    assert "5 local steps" in attack(Geiping(iterations=2), seen).notes["model"]


def test_a_mode_that_does_not_fit_the_model_is_refused(victim_of: VictimOf) -> None:
    with pytest.raises(InputError, match="the model has no BatchNorm"):
        attack(Geiping(batchnorm="exact"), victim_of(1)[0])
    seen, _ = victim_of(2, PreActResNet18(), "preact_resnet18")
    with pytest.raises(InputError, match="the model has BatchNorm"):
        attack(Geiping(), seen)


def test_the_model_is_rebuilt_with_group_norm_where_the_policy_says_so(victim_of: VictimOf) -> None:
    seen, _ = victim_of(2, PreActResNet18(), "preact_resnet18", batchnorm="group_norm")
    model = rebuild(seen, CPU).model
    assert sum(isinstance(module, torch.nn.GroupNorm) for module in model.modules()) == 17
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("place", range(5))
def test_idlg_reads_the_label_of_one_image(place: int, victim_of: VictimOf) -> None:
    seen, batch = victim_of(5)
    whole = batch.labels[place : place + 1]
    # The update of that one image.
    victim = rebuild(Observation(1, 0, "link", seen.tensors, {**seen.facts, "num_examples": 1}), CPU)
    x = victim.normalise(batch.images[place : place + 1])
    own = {name: value.requires_grad_() for name, value in victim.parameters.items()}
    loss = torch.nn.functional.cross_entropy(torch.func.functional_call(victim.model, own, (x,)), whole)
    victim.target.update(dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True)))
    assert torch.equal(labels.idlg(victim), whole)


@pytest.mark.parametrize("count", [4, 16])
def test_idlg_estimates_the_labels_of_a_batch_with_repetitions(count: int, victim_of: VictimOf) -> None:
    seen, batch = victim_of(count)
    found = labels.idlg(rebuild(seen, CPU))
    assert found.dtype == torch.int64
    assert found.shape == (count,)
    assert metrics.label_accuracy(found, batch.labels) >= 0.75


def test_idlg_goes_without_being_told_the_labels(victim_of: VictimOf) -> None:
    seen, batch = victim_of(1)
    blind = {name: value for name, value in seen.tensors.items() if name != "known/labels"}
    found = attack(Geiping(iterations=2, labels="idlg"), Observation(1, 0, "link", blind, seen.facts))
    assert found.labels is not None and torch.equal(found.labels, batch.labels)
