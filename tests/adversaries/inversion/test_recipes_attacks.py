"""The recipes as a run uses them: from the observation of one gradient to a reconstruction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attacking import CPU, at_start, attack, attack_many, quality, starting_at
from torch import nn

from fedsim import plugins, progress
from fedsim.adversaries.base import Observation, Reconstruction
from fedsim.adversaries.inversion import engines
from fedsim.adversaries.inversion.recipes.base import Inversion
from fedsim.adversaries.inversion.recipes.matching import Cpl, Dlg, Geiping, Idlg, Tag, Wei, Yin
from fedsim.adversaries.inversion.victim import rebuild
from fedsim.clients.defenses.pruning import GradientPruning
from fedsim.models.catalog import MLP, ConvNet6, LeNet
from fedsim.protocol import Batch

VictimOf = Callable[..., tuple[Observation, Batch]]
LENET = (LeNet(width=6), "lenet")
SMOOTH: dict[str, Any] = {"activation": "tanh", "pooling": "avg", "init": "kaiming"}


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` would choose it anyway; this makes sure that nothing here waits for a compiler."""
    monkeypatch.setattr(engines, "_pays", lambda *_: False)


def blind(seen: Observation) -> Observation:
    """Without the labels."""
    tensors = {name: value for name, value in seen.tensors.items() if name != "known/labels"}
    return Observation(1, 0, "link", tensors, seen.facts)


def test_geiping_recovers_digits_from_the_gradient_of_an_mlp(victim_of: VictimOf) -> None:
    seen, batch = victim_of(2)
    found = attack(Geiping(iterations=300, tv=0), seen)
    assert quality(found, batch) > 30
    assert (found.status, found.iterations) == ("done", 300)
    assert found.images is not None and found.initial is not None
    assert found.images.shape == (2, 1, 8, 8)
    assert found.images.dtype == torch.float32
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert found.labels is not None and torch.equal(found.labels, batch.labels)
    assert quality(Reconstruction(found.initial, None, 0, 0), batch) < 12
    assert found.notes["engine"] == "eager"


def test_geiping_recovers_digits_from_the_gradient_of_a_convolutional_network(victim_of: VictimOf) -> None:
    seen, batch = victim_of(2, ConvNet6(width=8, hidden=32, **SMOOTH), "convnet6")
    assert quality(attack(Geiping(iterations=200, tv=0), seen), batch) > 25


@pytest.mark.parametrize("recipe", [Dlg, Idlg])
def test_dlg_and_idlg_recover_a_digit_and_its_label_from_the_gradient_of_lenet(
    recipe: type[Inversion], victim_of: VictimOf
) -> None:
    seen, batch = victim_of(1, *LENET)
    found = attack(recipe(iterations=100), blind(seen))
    assert quality(found, batch) > 40
    assert found.labels is not None and torch.equal(found.labels, batch.labels)
    assert found.objective < 1e-4 * found.history[0][1]


def test_dlg_recovers_a_batch_with_its_labels(victim_of: VictimOf) -> None:
    seen, batch = victim_of(2, *LENET)
    found = attack(Dlg(iterations=200, restarts=2), blind(seen))
    assert quality(found, batch) > 25
    assert found.labels is not None and found.labels.dtype == torch.int64
    assert torch.equal(found.labels.sort().values, batch.labels.sort().values)


@pytest.mark.parametrize("recipe", [Cpl, Wei])
def test_client_privacy_leakage_comes_near_or_as_near_as_its_prior_lets_it(
    recipe: type[Inversion], victim_of: VictimOf
) -> None:
    seen, batch = victim_of(1, *LENET)
    found = attack(recipe(iterations=60), blind(seen))
    assert found.labels is not None and torch.equal(found.labels, batch.labels)
    assert found.objective < found.history[0][1]
    # An untrained network does not classify the digit as its label, so that the prior pulls away from it.
    faint = attack(recipe(iterations=100, task=1e-6), blind(seen))
    assert quality(faint, batch) > 40


def test_tag_recovers_a_digit_with_its_label(victim_of: VictimOf) -> None:
    seen, batch = victim_of(1)
    found = attack(Tag(iterations=300), blind(seen))
    assert quality(found, batch) > 30
    assert found.labels is not None and torch.equal(found.labels, batch.labels)


def test_yin_without_batchnorm_recovers_digits_of_different_classes(victim_of: VictimOf) -> None:
    seen, batch = victim_of(2, MLP(hidden=(64,), activation="sigmoid"))
    settings = Yin(iterations=300, batchnorm="none", tv=0, bn_prior=0, group=0.1, restarts=2)
    found = attack(settings, blind(seen))
    assert quality(found, batch) > 22
    assert found.labels is not None and torch.equal(found.labels, batch.labels.sort().values)


def test_a_job_and_a_seed_determine_the_result(victim_of: VictimOf) -> None:
    seen, _ = victim_of(2)
    before = torch.random.get_rng_state()
    for settings in (Geiping(iterations=30), Dlg(iterations=5), Geiping(iterations=30, langevin=0.1)):
        first, second, other = attack(settings, seen), attack(settings, seen), attack(settings, seen, seed=1)
        assert torch.equal(first.images, second.images)  # type: ignore[arg-type]
        assert first.history == second.history
        assert not torch.equal(first.images, other.images)  # type: ignore[arg-type]
    assert torch.equal(torch.random.get_rng_state(), before), "the simulation's own draws must not be disturbed"


@pytest.mark.parametrize("settings", [Geiping(iterations=40, restarts=3), Dlg(iterations=5, restarts=3)])
def test_of_several_trials_the_one_with_the_least_objective_is_returned(
    settings: Inversion, victim_of: VictimOf
) -> None:
    seen, _ = victim_of(2)
    heard: list[tuple[int, int]] = []
    with progress.listening(lambda done, total, note: heard.append((done, total))):
        found = attack(settings, seen)
    every = found.notes["objectives of the restarts"]
    assert len(every) == 3
    assert found.objective == min(every) < max(every)
    assert found.history[-1][1] == found.objective
    assert found.iterations == 3 * settings.iterations
    assert heard == sorted(heard)
    assert heard[-1][0] == heard[-1][1]


def test_several_jobs_together_are_each_as_alone(victim_of: VictimOf) -> None:
    """Of different images, labels and models; up to rounding, and to the bit where each step is of one trial."""
    seen = [victim_of(2)[0], _other(victim_of), victim_of(2)[0]]
    # Noise, too, is each job's own. Signs would make much of a rounding.
    settings = Geiping(iterations=30, signed=False, langevin=0.1, restarts=2, precision="float64")
    alone = [attack(settings, one, seed) for seed, one in enumerate(seen)]
    for together in (None, 3, 6):
        many = attack_many(dataclasses.replace(settings, together=together), seen, range(3))
        for one, other in zip(many, alone, strict=True):
            torch.testing.assert_close(one.images, other.images, rtol=0, atol=1e-6)
            torch.testing.assert_close(one.initial, other.initial)
            assert one.objective == pytest.approx(other.objective, rel=1e-6)
            assert torch.equal(one.labels, other.labels)  # type: ignore[arg-type]
            if together is None:
                assert torch.equal(one.images, other.images)  # type: ignore[arg-type]
    assert not torch.allclose(alone[0].images, alone[2].images)  # type: ignore[arg-type]


def _other(victim_of: VictimOf) -> Observation:
    """The last two of six digits, at a model with other weights."""
    seen, batch = victim_of(6)
    victim = rebuild(seen, CPU)
    own = {name: (0.9 * value).requires_grad_() for name, value in victim.parameters.items()}
    logits = torch.func.functional_call(victim.model, own, (victim.normalise(batch.images[4:]),))
    loss = torch.nn.functional.cross_entropy(logits, batch.labels[4:])
    gradient = torch.autograd.grad(loss, list(own.values()))
    tensors = {f"model/{name}": value.detach() for name, value in own.items()}
    tensors |= {f"update/{name}": value for name, value in zip(own, gradient, strict=True)}
    facts = {**seen.facts, "num_examples": 2, "batch_size": 2}
    return Observation(1, 1, "link", {**tensors, "known/labels": batch.labels[4:]}, facts)


def test_jobs_that_are_not_alike_are_run_one_by_one(victim_of: VictimOf) -> None:
    seen = [victim_of(2)[0], victim_of(1)[0], victim_of(1, *LENET)[0]]
    settings = Geiping(iterations=5, together=8)
    for one, other in zip(attack_many(settings, seen, range(3)), (0, 1, 2), strict=True):
        assert torch.equal(one.images, attack(settings, seen[other], other).images)  # type: ignore[arg-type]


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
    for settings in (Geiping(iterations=10), Dlg(iterations=10)):
        found = attack(settings, Observation(1, 0, "link", tensors, seen.facts))
        assert found.status == "nan"
        assert found.images is not None and torch.isfinite(found.images).all()


def test_float64_sees_further_than_float32(victim_of: VictimOf, tmp_path: Path) -> None:
    seen, batch = victim_of(1, *LENET)
    settings = Idlg(iterations=100)
    single, double = attack(settings, seen), attack(dataclasses.replace(settings, precision="float64"), seen)
    assert double.objective < 0.1 * single.objective
    assert double.images is not None and double.images.dtype == torch.float32
    at_truth = Geiping(precision="float64", **starting_at(batch.images, tmp_path))
    # The update itself was computed in float32.
    assert abs(at_start(attack(at_truth, seen))) < 1e-11


@pytest.mark.parametrize("recipe", [Geiping, Idlg, Tag])
def test_at_the_truth_every_objective_is_nothing(recipe: type[Inversion], victim_of: VictimOf, tmp_path: Path) -> None:
    seen, batch = victim_of(1)
    first = starting_at(batch.images, tmp_path)
    assert abs(at_start(attack(recipe(**{**first, "labels": "known"}), seen))) < 1e-3
    dark = starting_at(1 - batch.images, tmp_path)
    assert at_start(attack(recipe(**{**dark, "labels": "known"}), seen)) > 0.05


def test_the_features_of_one_image_are_read_exactly(victim_of: VictimOf, tmp_path: Path) -> None:
    seen, batch = victim_of(1)
    truth = Geiping(features=1.0, **starting_at(batch.images, tmp_path))
    assert at_start(attack(truth, seen)) < 1e-5
    dark = Geiping(features=1.0, **starting_at(1 - batch.images, tmp_path))
    assert at_start(attack(dark, seen)) > at_start(attack(dataclasses.replace(dark, features=0.0), seen)) + 0.01


def test_patience_and_the_time_limit_end_a_trial(victim_of: VictimOf) -> None:
    seen, _ = victim_of(1)
    patient = attack(Geiping(iterations=2000, tv=0.1, patience=3), seen)
    assert patient.status == "plateau"
    assert patient.iterations < 2000
    assert attack(Geiping(iterations=2000, time_limit=1e-6), seen).status == "time"


@pytest.mark.parametrize("initial", ["normal", "uniform", "zeros", "patterned"])
def test_every_first_guess_lies_in_the_box_or_is_clipped_to_it(initial: Any, victim_of: VictimOf) -> None:
    found = attack(Geiping(iterations=2, initial=initial), victim_of(1)[0])
    assert found.initial is not None
    assert found.initial.min() >= 0
    assert found.initial.max() <= 1
    if initial == "zeros":
        torch.testing.assert_close(found.initial, torch.full((1, 1, 8, 8), 0.3))  # the data set's mean


@dataclasses.dataclass(frozen=True)
class Dropping:
    """The settings of a model with dropout."""

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, classes))


def test_dropout_is_left_out_and_said(victim_of: VictimOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its draws would come from the generator that the process shares, and be others every time."""
    seen, _ = victim_of(2, Dropping())
    monkeypatch.setattr(plugins, "load", lambda kind, name: Dropping)
    settings = Geiping(iterations=3, engine="eager")
    first, second = attack(settings, seen), attack(settings, seen)
    assert first.images is not None and second.images is not None
    assert torch.equal(first.images, second.images)
    assert "dropout" in first.notes
