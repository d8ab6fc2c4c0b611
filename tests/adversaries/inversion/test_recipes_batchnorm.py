"""The recipes on a model with BatchNorm: what each mode makes of a client's gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from attacking import CPU, at_start, attack, attack_many, quality, starting_at
from torch import Tensor, nn

from fedsim import batchnorm, plugins
from fedsim.adversaries.base import Observation
from fedsim.adversaries.inversion.recipes.matching import Geiping, GeipingFedAvg, Huang, Yin
from fedsim.adversaries.inversion.victim import rebuild
from fedsim.clients.training import train
from fedsim.data.dataset import Normalisation
from fedsim.errors import InputError
from fedsim.experiment import LocalTraining
from fedsim.models.building import build
from fedsim.models.catalog import PreActResNet18
from fedsim.protocol import Batch

VictimOf = Callable[..., tuple[Observation, Batch]]
MODES = ["exact", "own_statistics", "infer", "proxy"]


@dataclass(frozen=True)
class TinyNorm:
    """Two convolutions, each with BatchNorm."""

    batchnorm: ClassVar[bool | None] = True
    width: int = 12

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(shape[0], self.width, 3, padding=1),
            nn.BatchNorm2d(self.width),
            nn.Tanh(),
            nn.Conv2d(self.width, self.width, 3, padding=1),
            nn.BatchNorm2d(self.width),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(self.width * shape[1] * shape[2], classes),
        )


@pytest.fixture(autouse=True)
def _tiny_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    load = plugins.load
    monkeypatch.setattr(plugins, "load", lambda kind, name: TinyNorm if name == "tiny_norm" else load(kind, name))


def normed(
    victim_of: VictimOf, count: int = 2, policy: str = "local", local: LocalTraining | None = None, steps: int = 1
) -> tuple[Observation, Batch]:
    """What is seen of a client's step under a policy, with both kinds of statistics granted."""
    settings = TinyNorm()
    seen, batch = victim_of(count, settings, "tiny_norm", batchnorm=policy)
    model = build(settings, (1, 8, 8), 10, seed=0)
    running = {}
    for name, value in batchnorm.statistics(model).items():
        rng = torch.Generator().manual_seed(len(running))
        running[name] = value + 0.3 * torch.rand(value.shape, generator=rng)
    batchnorm.load_statistics(model, running)
    trained = train(
        model,
        seen.part("model"),
        [batch] * steps,
        local or LocalTraining(),
        "fedavg" if local else "fedsgd",
        policy,
        Normalisation(tuple(seen.facts["mean"]), tuple(seen.facts["std"])),
        record=True,
    )
    tensors = {**seen.tensors, **{f"update/{name}": value for name, value in trained.update.tensors.items()}}
    for key, value in {**batchnorm.mean_statistics(trained.passes), **running}.items():
        layer, _, kind = key.rpartition(".")
        tensors[f"known/{kind}/{layer}"] = value
    facts = {**seen.facts, "num_steps": steps}
    if local:
        facts |= {"algorithm": "fedavg", "learning_rate": local.learning_rate, "momentum": local.momentum}
    return Observation(1, 0, "link", tensors, facts), batch


def objective_at(images: Tensor, folder: Path, mode: Any, seen: Observation, **more: Any) -> float:
    return at_start(attack(Huang(**{**starting_at(images, folder), "batchnorm": mode, **more}), seen))


@pytest.mark.parametrize(("mode", "policy"), [("own_statistics", "local"), ("infer", "local"), ("proxy", "freeze")])
def test_the_mode_that_does_what_the_client_did_matches_perfectly(
    mode: str, policy: str, victim_of: VictimOf, tmp_path: Path
) -> None:
    seen, batch = normed(victim_of, policy=policy)
    assert objective_at(batch.images, tmp_path, mode, seen) == pytest.approx(0, abs=1e-5)
    assert objective_at(1 - batch.images, tmp_path, mode, seen) > 0.01


@pytest.mark.parametrize(("mode", "policy"), [("exact", "local"), ("proxy", "local"), ("infer", "freeze")])
def test_a_mode_that_does_something_else_has_a_floor(
    mode: str, policy: str, victim_of: VictimOf, tmp_path: Path
) -> None:
    seen, batch = normed(victim_of, policy=policy)
    assert objective_at(batch.images, tmp_path, mode, seen) > 1e-4


def test_the_prior_is_of_the_statistics_that_the_mode_says(victim_of: VictimOf, tmp_path: Path) -> None:
    seen, batch = normed(victim_of)
    of = {mode: objective_at(batch.images, tmp_path, mode, seen, bn_prior=1.0) for mode in MODES}
    without = {mode: objective_at(batch.images, tmp_path, mode, seen) for mode in MODES}
    # At the private batch: the private statistics are its own, the running ones are not.
    assert of["exact"] == pytest.approx(without["exact"], abs=1e-4)
    assert of["own_statistics"] == pytest.approx(0, abs=1e-4)
    assert of["infer"] > 0.5
    assert of["proxy"] == without["proxy"]


@pytest.mark.parametrize("mode", ["own_statistics", "exact"])
def test_huang_recovers_digits_through_batchnorm(mode: Any, victim_of: VictimOf) -> None:
    seen, batch = normed(victim_of)
    settings = Huang(iterations=200, tv=0.0005, batchnorm=mode, engine="eager")
    found = attack(settings, seen)
    assert found.objective < 0.3 * found.history[0][1]
    assert quality(found, batch) > 17


def test_huang_recovers_digits_of_a_client_with_frozen_statistics(victim_of: VictimOf) -> None:
    seen, batch = normed(victim_of, policy="freeze")
    found = attack(Huang(iterations=200, tv=0.0005, batchnorm="proxy", engine="eager"), seen)
    assert quality(found, batch) > 20


def test_local_steps_are_unrolled_through_batchnorm(victim_of: VictimOf, tmp_path: Path) -> None:
    local = LocalTraining(learning_rate=0.2, momentum=0.5, batch_size=2)
    seen, batch = normed(victim_of, local=local, steps=3)
    for mode in ("infer", "own_statistics"):
        settings = {**starting_at(batch.images, tmp_path), "batchnorm": mode}
        assert at_start(attack(GeipingFedAvg(**settings), seen)) == pytest.approx(0, abs=1e-5)
        # The prior is of the mean over the steps.
        with_prior = at_start(attack(GeipingFedAvg(**{**settings, "bn_prior": 1.0}), seen))
        assert (with_prior < 1e-3) == (mode == "own_statistics")


def test_several_victims_together_have_statistics_of_their_own(victim_of: VictimOf) -> None:
    seen = [normed(victim_of)[0], normed(victim_of, policy="local")[0]]
    other = {name: value * 1.1 if name.startswith("known/mean") else value for name, value in seen[1].tensors.items()}
    seen[1] = Observation(1, 1, "link", other, seen[1].facts)
    settings: dict[str, Any] = {"iterations": 10, "signed": False, "precision": "float64", "engine": "eager"}
    for mode in ("exact", "own_statistics"):
        alone = [attack(Huang(batchnorm=mode, **settings), one) for one in seen]
        many = attack_many(Huang(batchnorm=mode, together=2, **settings), seen, [0, 0])
        for one, another in zip(many, alone, strict=True):
            torch.testing.assert_close(one.images, another.images, rtol=0, atol=1e-6)
        assert alone[0].objective != alone[1].objective


def test_yin_works_with_running_statistics_alone(victim_of: VictimOf) -> None:
    seen, _ = normed(victim_of)
    tensors = {name: v for name, v in seen.tensors.items() if not name.startswith(("known/labels", "known/mean"))}
    found = attack(Yin(iterations=10, engine="eager", together=4), Observation(1, 0, "link", tensors, seen.facts))
    assert found.objective < found.history[0][1]
    assert len(found.notes["objectives of the restarts"]) == 4


def test_missing_statistics_are_named(victim_of: VictimOf) -> None:
    seen, _ = normed(victim_of)
    bare = {name: value for name, value in seen.tensors.items() if not name.startswith(("known/mean", "known/var"))}
    with pytest.raises(InputError, match="no statistics of layer '1', which batchnorm = \"exact\" needs"):
        attack(Huang(), Observation(1, 0, "link", bare, seen.facts))


def test_the_mode_none_is_refused_on_a_model_with_batchnorm(victim_of: VictimOf) -> None:
    with pytest.raises(InputError, match="the model has BatchNorm"):
        attack(Geiping(), normed(victim_of)[0])


def test_the_model_is_rebuilt_with_group_norm_where_the_policy_says_so(victim_of: VictimOf) -> None:
    seen, _ = victim_of(2, PreActResNet18(), "preact_resnet18", batchnorm="group_norm")
    model = rebuild(seen, CPU).model
    assert sum(isinstance(module, nn.GroupNorm) for module in model.modules()) == 17
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
