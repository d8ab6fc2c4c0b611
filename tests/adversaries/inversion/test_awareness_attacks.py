"""Whole attacks on defended gradients: knowing the defense must show in the picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attacking import at_start, attack, attack_many, quality, starting_at
from defended import defend, length, typical

from fedsim.adversaries.base import Observation
from fedsim.adversaries.inversion import matching
from fedsim.adversaries.inversion.recipes.matching import Dlg, Geiping
from fedsim.clients.defenses.clipping import GradientClipping
from fedsim.clients.defenses.noise import GradientNoise
from fedsim.clients.defenses.outpost import Outpost
from fedsim.clients.defenses.pruning import GradientPruning
from fedsim.clients.defenses.quantisation import Quantisation
from fedsim.clients.defenses.sign import SignCompression
from fedsim.clients.defenses.soteria import Soteria
from fedsim.clients.defenses.sparsification import RandomSparsification
from fedsim.models.building import build
from fedsim.models.catalog import MLP
from fedsim.protocol import Batch

VictimOf = Callable[..., tuple[Observation, Batch]]
BRIEF = Geiping(iterations=100, tv=0.001)
AWARE = dataclasses.replace(BRIEF, aware=True)

DEFENSES: dict[str, tuple[Callable[[Observation], list[tuple[str, Any]]], float]] = {
    "pruning": (lambda _: [("gradient_pruning", GradientPruning(0.9))], 5),
    "random": (lambda _: [("random_sparsification", RandomSparsification(0.9))], 5),
    "soteria": (lambda _: [("soteria", Soteria(0.5))], 5),
    "gaussian noise": (lambda seen: [("gradient_noise", GradientNoise("gaussian", typical(seen)))], -0.5),
    "laplace noise": (lambda seen: [("gradient_noise", GradientNoise("laplace", typical(seen)))], 1),
    "clipping": (lambda seen: [("gradient_clipping", GradientClipping(0.1 * length(seen), "tensor"))], 5),
    "sign": (lambda _: [("sign_compression", SignCompression())], 0.3),
    "coarse grid": (lambda _: [("quantisation", Quantisation(2, "nearest"))], 2),
    "random rounding": (lambda _: [("quantisation", Quantisation(3, "stochastic"))], 2),
    "outpost": (lambda _: [("outpost", Outpost(decay=0.0))], 5),
    "pruning, then noise": (
        lambda seen: [
            ("gradient_pruning", GradientPruning(0.8)),
            ("gradient_noise", GradientNoise("gaussian", 0.3 * typical(seen))),
        ],
        3,
    ),
}


@pytest.mark.parametrize("name", DEFENSES)
def test_who_knows_the_defense_sees_more(name: str, victim_of: VictimOf) -> None:
    """By so many dB, of some twice as many that were measured. Gaussian noise gains little, and signs too here."""
    seen, batch = victim_of(1)
    defenses, gain = DEFENSES[name]
    seen = defend(seen, batch, *defenses(seen))
    unaware, aware = attack(BRIEF, seen), attack(AWARE, seen)
    assert quality(aware, batch) > quality(unaware, batch) + gain
    assert "defenses known" not in unaware.notes
    said = str(aware.notes["defenses known"])
    for known in seen.facts["defenses"]:
        assert f"{known['name']}: " in said


@pytest.mark.parametrize("name", ["random", "clipping", "coarse grid", "pruning, then noise"])
def test_alike_victims_together_are_the_same_as_alone(name: str, victim_of: VictimOf) -> None:
    """What maps and masks hold differs between the two, and neither may get the other's."""
    several = []
    for seed in (1, 2):
        seen, batch = victim_of(1)
        several.append(defend(seen, batch, *DEFENSES[name][0](seen), seed=seed))
    if name in ("clipping", "coarse grid"):
        # These draw nothing: another update, from the same model.
        twice = {key: 0.5 * value if key.startswith("update/") else value for key, value in several[1].tensors.items()}
        several[1] = dataclasses.replace(several[1], tensors=twice)
    settings = dataclasses.replace(AWARE, iterations=10, together=2)
    for seed, (seen, found) in enumerate(zip(several, attack_many(settings, several, [0, 1]), strict=True)):
        alone = attack(dataclasses.replace(settings, together=1), seen, seed)
        assert found.objective == pytest.approx(alone.objective, rel=1e-4)
        assert found.notes["defenses known"] == alone.notes["defenses known"]


def test_victims_of_unlike_defenses_are_run_one_by_one(victim_of: VictimOf) -> None:
    seen, batch = victim_of(1)
    unlike = [defend(seen, batch, *DEFENSES[name][0](seen)) for name in ("sign", "laplace noise")]
    for found, one in zip(attack_many(dataclasses.replace(AWARE, iterations=5), unlike, [0, 0]), unlike, strict=True):
        assert torch.equal(found.images, attack(dataclasses.replace(AWARE, iterations=5), one).images)  # type: ignore[arg-type]


def test_the_truth_is_worth_nothing_to_who_follows_the_clipping(victim_of: VictimOf, tmp_path: Any) -> None:
    seen, batch = victim_of(1)
    seen = defend(seen, batch, *DEFENSES["clipping"][0](seen))
    truth = starting_at(batch.images, tmp_path)
    assert at_start(attack(Geiping(**truth), seen)) > 0.01
    assert abs(at_start(attack(Geiping(aware=True, **truth), seen))) < 1e-5


def test_fedavg_s_units_are_those_of_the_update(victim_of: VictimOf) -> None:
    """One local step at a rate of 0.1: the update is a tenth of the gradient, and the noise is on the update."""
    seen, batch = victim_of(1)
    loud = defend(seen, batch, ("gradient_noise", GradientNoise("laplace", typical(seen))))
    tenth = {key: 0.1 * value if key.startswith("update/") else value for key, value in loud.tensors.items()}
    known = [{**loud.facts["defenses"][0], "std": 0.1 * typical(seen)}]
    local = dataclasses.replace(loud, tensors=tenth, facts={**loud.facts, "algorithm": "fedavg", "defenses": known})
    brief = dataclasses.replace(AWARE, iterations=1)
    assert attack(brief, local).objective == pytest.approx(attack(brief, loud).objective, rel=1e-4)


def test_an_aware_attack_on_no_defense_or_on_unlike_ones_says_so(victim_of: VictimOf) -> None:
    seen, _ = victim_of(1, defenses=())
    brief = dataclasses.replace(AWARE, iterations=1)
    none = dataclasses.replace(seen, facts={**seen.facts, "defenses": []})
    assert attack(brief, none).notes["defenses known"] == "the client has no defense"
    summed = dataclasses.replace(seen, facts={**seen.facts, "clients": [0, 1]})
    assert "different defenses" in str(attack(brief, summed).notes["defenses known"])


def test_an_encoding_with_random_signs_is_sought_among_pixels_of_either_sign(victim_of: VictimOf) -> None:
    seen, _ = victim_of(1)
    known = dataclasses.replace(seen, facts={**seen.facts, "defenses": [{"name": "instahide", "k": 4}]})
    rng = torch.Generator().manual_seed(0)
    case = matching._case(AWARE, known, torch.device("cpu"), rng)
    low, high = case.box
    assert case.plan.weights.tv_absolute
    # Of (0 - 0.3) / 0.4 and (1 - 0.3) / 0.4 the latter is the larger.
    assert (low.item(), high.item()) == pytest.approx((-1.75, 1.75))
    plain = matching._case(BRIEF, known, torch.device("cpu"), rng)
    assert plain.box[0].item() == pytest.approx(-0.75)
    assert not plain.plan.weights.tv_absolute


def test_quasi_newton_steps_follow_maps_too(victim_of: VictimOf) -> None:
    seen, batch = victim_of(1)
    seen = defend(seen, batch, *DEFENSES["clipping"][0](seen))
    brief = Dlg(iterations=40, labels="known")
    unaware, aware = attack(brief, seen), attack(dataclasses.replace(brief, aware=True), seen)
    assert quality(aware, batch) > quality(unaware, batch) + 5


def test_what_stands_behind_a_bottleneck_is_left_out(victim_of: VictimOf) -> None:
    settings = MLP(hidden=(64,), activation="tanh", bottleneck=8)
    seen, _ = victim_of(1)
    own = {f"model/{name}": value.detach() for name, value in build(settings, (1, 8, 8), 10, seed=0).named_parameters()}
    tensors = {**own, **{name.replace("model/", "update/"): torch.ones_like(value) for name, value in own.items()}}
    facts = {**seen.facts, "model": {"name": "mlp", "settings": dataclasses.asdict(settings)}, "defenses": []}
    bottled = Observation(1, 0, "link", {**tensors, "known/labels": seen.tensors["known/labels"]}, facts)
    found = attack(dataclasses.replace(AWARE, iterations=2), bottled)
    assert "precode: leaves out the 6 tensors" in str(found.notes["defenses known"])
