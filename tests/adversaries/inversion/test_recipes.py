"""The settings of the recipes: read without torch, what they need, and what they refuse."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from attacking import attack
from torch import nn

from fedsim import plugins
from fedsim.adversaries.base import Situation
from fedsim.adversaries.inversion.recipes import matching
from fedsim.adversaries.inversion.recipes.base import Inversion
from fedsim.adversaries.inversion.recipes.matching import (
    Cpl,
    Dimitrov,
    Dlg,
    Geiping,
    GeipingFedAvg,
    Huang,
    Idlg,
    Wei,
    Yin,
)
from fedsim.errors import InputError

RECIPES = ["dlg", "idlg", "cpl", "wei", "tag", "geiping", "geiping_fedavg", "dimitrov", "yin", "huang"]
ALWAYS = {"global_model", "update", "num_examples"}
PLAIN = Situation("mlp", False, "local", "fedsgd", True, (1,))
WITH_BATCHNORM = dataclasses.replace(PLAIN, model="resnet18", has_batchnorm=True)
FEDAVG = dataclasses.replace(PLAIN, algorithm="fedavg", one_gradient=False)


def recipe(name: str, **settings: Any) -> Inversion:
    made: Inversion = plugins.load("adversaries", name)(**settings)
    return made


def test_the_settings_are_read_without_torch() -> None:
    code = (
        "import sys\n"
        "from fedsim.adversaries.base import Situation\n"
        "from fedsim.adversaries.inversion.recipes import matching\n"
        "for name in ('Dlg', 'Idlg', 'Cpl', 'Wei', 'Tag', 'Geiping', 'GeipingFedAvg', 'Dimitrov', 'Yin', 'Huang'):\n"
        "    made = getattr(matching, name)()\n"
        "    made.needs, made.powers, made.objection(Situation('mlp', False, 'local', 'fedavg', False, (2,)))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_found_by_its_name_says_its_source_and_is_passive(name: str) -> None:
    made = recipe(name)
    assert isinstance(made, Inversion)
    assert dataclasses.is_dataclass(made)
    assert "Source:" in (type(made).__doc__ or "")
    assert made.powers == frozenset()
    assert {field.name for field in dataclasses.fields(made)} == {field.name for field in dataclasses.fields(Inversion)}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("dlg", {"optimiser": "lbfgs", "objective": "squared_l2", "labels": "joint", "step_size": 1.0, "box": False}),
        ("idlg", {"optimiser": "lbfgs", "objective": "squared_l2", "labels": "idlg", "step_size": 1.0}),
        ("cpl", {"optimiser": "lbfgs", "initial": "patterned", "task_kind": "squared", "labels": "idlg"}),
        ("wei", {"optimiser": "lbfgs", "initial": "patterned", "iterations": 300}),
        ("tag", {"objective": "tag", "optimiser": "adam", "labels": "joint"}),
        ("geiping", {"objective": "cosine", "signed": True, "step_size": 0.1, "iterations": 4800, "box": True}),
        ("geiping_fedavg", {"objective": "cosine", "local_steps": "unrolled", "separate_epochs": False}),
        ("dimitrov", {"objective": "cosine", "local_steps": "unrolled", "separate_epochs": True}),
        ("yin", {"objective": "squared_l2", "iterations": 20000, "batchnorm": "infer", "labels": "yin"}),
        ("huang", {"objective": "cosine", "iterations": 10000, "bn_prior": 0.001, "schedule": "three_drops"}),
    ],
)
def test_the_defaults_are_the_published_ones(name: str, published: dict[str, Any]) -> None:
    made = recipe(name)
    assert {key: getattr(made, key) for key in published} == published


def test_needs_follow_the_settings() -> None:
    cases: list[tuple[Inversion, set[str]]] = [
        (Geiping(), {"labels"}),
        (Dlg(), set()),
        (Idlg(), set()),
        (Cpl(labels="known"), {"labels"}),
        (Geiping(labels="ilrg"), set()),
        (Huang(), {"labels", "batch_statistics"}),
        (Huang(batchnorm="own_statistics"), {"labels", "batch_statistics"}),
        (Yin(), {"running_statistics"}),
        (Geiping(batchnorm="proxy"), {"labels", "running_statistics"}),
        (Geiping(aware=True), {"labels", "defenses"}),
    ]
    for settings, extra in cases:
        assert settings.needs == ALWAYS | extra, settings


# What is refused, where, and the words in which its remedy is named.
REFUSED: list[tuple[Inversion, Situation, tuple[str, ...]]] = [
    (Huang(), PLAIN, ("batch_statistics", "no BatchNorm", 'batchnorm = "none"')),
    (Yin(), PLAIN, ("running_statistics", "no BatchNorm", 'batchnorm = "none"')),
    (Geiping(), WITH_BATCHNORM, ("the model has BatchNorm", "exact, own_statistics, infer or proxy")),
    (Geiping(group=1.0), PLAIN, ("restarts", "2 or more")),
    (Geiping(separate_epochs=True), FEDAVG, ('local_steps = "unrolled"',)),
    (Dlg(schedule="cosine"), PLAIN, ("lbfgs", 'schedule = "constant"')),
    (Dlg(warm_up=3), PLAIN, ("lbfgs", "warm_up")),
    (Dlg(langevin=0.1), PLAIN, ("lbfgs", "langevin")),
    (Dlg(group=0.1, restarts=2), PLAIN, ("lbfgs", "group")),
    (Dlg(signed=True), PLAIN, ("lbfgs", "signed = false")),
    (Dlg(together=2), PLAIN, ("one trial at a time", "leave together out")),
    (Dlg(engine="cudagraph"), PLAIN, ("lbfgs", '"auto", "eager" or "compiled"')),
    (Geiping(features=0.1, labels="joint"), PLAIN, ("features", "infer them")),
    (GeipingFedAvg(features=0.1), FEDAVG, ("features", "unrolled", 'local_steps = "one_gradient"')),
    (Geiping(restarts=2, initial="zeros"), PLAIN, ("the same", '"normal"')),
    (Geiping(tag_scale=0.2), PLAIN, ("tag_scale does nothing", 'objective = "tag"')),
    (Geiping(task_kind="squared"), PLAIN, ("task_kind does nothing", "task above 0")),
    (GeipingFedAvg(order_invariance=0.1), FEDAVG, ("order_invariance does nothing", "separate_epochs = true")),
    (Geiping(patch=8), PLAIN, ("patch does nothing", 'initial = "patterned"')),
    (Geiping(initial_file=__file__), PLAIN, ("initial_file does nothing", 'initial = "given"')),
    (Geiping(initial="given", initial_file="nowhere.npy"), PLAIN, ("nowhere.npy", "no such file")),
    (Geiping(initial="given"), PLAIN, ("initial_file", ".npy")),
    (
        GeipingFedAvg(),
        dataclasses.replace(FEDAVG, batch_sizes=(2, 2), aggregate=True),
        ("several", 'local_steps = "one_gradient"'),
    ),
]


@pytest.mark.parametrize(("settings", "situation", "words"), REFUSED)
def test_what_cannot_work_is_refused_with_the_remedy(
    settings: Inversion, situation: Situation, words: tuple[str, ...]
) -> None:
    objection = settings.objection(situation)
    assert objection is not None
    assert all(word in objection for word in words), objection


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_used_on_something(name: str) -> None:
    made = recipe(name)
    situation = PLAIN if made.batchnorm == "none" else WITH_BATCHNORM
    if made.labels == "idlg":
        situation = dataclasses.replace(situation, batch_sizes=(1,))
    assert made.objection(situation) is None
    steps = made.objection(dataclasses.replace(situation, algorithm="fedavg", one_gradient=False))
    assert (steps is None) == (made.labels != "idlg")
    assert made.objection_to(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), situation) is None


def test_what_only_the_model_can_tell_is_left_to_it() -> None:
    unknown = dataclasses.replace(PLAIN, has_batchnorm=None)
    assert Huang().objection(unknown) is None
    assert Geiping().objection(unknown) is None


def test_labels_of_several_images_are_not_read_as_those_of_one() -> None:
    batch = dataclasses.replace(PLAIN, batch_sizes=(4,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    for settings in (Idlg(), Cpl()):
        assert "one image" in (settings.objection_to(model, batch) or "")
    assert "no class twice" in (Yin().objection_to(model, batch) or "")
    assert Dlg().objection_to(model, batch) is None
    assert Idlg(labels="known").objection_to(model, batch) is None


def test_joint_labels_with_awareness_and_the_like_need_no_more_than_they_say() -> None:
    assert matching.Dlg(aware=True).needs == ALWAYS | {"defenses"}


def test_several_jobs_are_one_batch_where_that_is_better() -> None:
    import torch

    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert Geiping().batches(cuda)
    assert not Geiping().batches(cpu)
    assert Geiping(together=4).batches(cpu)
    assert not Geiping(together=1).batches(cuda)
    assert not Dlg().batches(cuda), "a line search is of one trial"


def test_an_attack_looks_once_more_at_what_was_captured(victim_of: Any) -> None:
    with pytest.raises(InputError, match="the model has no BatchNorm"):
        attack(Huang(), victim_of(1)[0])
    with pytest.raises(InputError, match="one image"):
        attack(Idlg(), victim_of(2)[0])
    with pytest.raises(InputError, match="the sum of several"):
        attack(GeipingFedAvg(), victim_of(2, algorithm="fedavg", clients=[0, 1])[0])


def test_a_setting_of_the_recipe_itself_may_be_left_without_use() -> None:
    assert Wei(initial="normal").objection(PLAIN) is None
    assert Dimitrov(separate_epochs=False).objection(FEDAVG) is None
    assert Cpl(task=0.0).objection(PLAIN) is None


def test_features_need_a_last_layer_with_a_bias() -> None:
    without = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
    settings = Geiping(features=0.1)
    assert "no bias" in (settings.objection_to(without, PLAIN) or "")
    assert "fully connected" in (settings.objection_to(nn.Conv2d(1, 1, 1), PLAIN) or "")
    assert settings.objection_to(nn.Linear(4, 3), PLAIN) is None
    assert Geiping().objection_to(without, PLAIN) is None
