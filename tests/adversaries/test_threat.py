from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from fedsim.adversaries import threat
from fedsim.adversaries.base import Situation
from fedsim.experiment import SIGHTS, AdversaryEntry, Component, Experiment
from fedsim.schema import Problems


@dataclass(frozen=True)
class Nosy:
    needs: frozenset[str] = frozenset({"update", "labels"})
    powers: frozenset[str] = frozenset()

    def capture(self, seen: Any) -> Any: ...
    def attack(self, job: Any, device: Any, rng: Any) -> Any: ...


def spied(experiment: Experiment, plugin: Any = None, **entry: Any) -> Experiment:
    values: dict[str, Any] = {"vantage": "link", "targets": (0,), "rounds": (1,), "knows": ("labels",), **entry}
    made = AdversaryEntry(id="spy", plugin=Component("nosy", plugin or Nosy()), **values)
    return replace(experiment, adversaries=(made,))


def refusal(experiment: Experiment) -> str:
    problems = Problems("file.toml", {("adversaries", 0): 7}, {})
    threat.check(experiment, problems)
    assert problems.found
    return "\n".join(problems.found)


def accepted(experiment: Experiment) -> bool:
    problems = Problems("file.toml", {}, {})
    threat.check(experiment, problems)
    return not problems.found


def test_what_is_granted_is_not_refused(small: Any) -> None:
    assert accepted(spied(small()))


def test_an_ungranted_need_is_refused_by_name_with_the_remedy(small: Any) -> None:
    text = refusal(spied(small(), knows=()))
    assert "file.toml:7: adversaries[0]: 'spy': plugin 'nosy' needs 'labels'" in text
    assert 'add "labels" to knows' in text


def test_a_sight_that_the_vantage_lacks_names_the_vantages_that_have_it(small: Any) -> None:
    text = refusal(spied(small(), vantage="client", member=0))
    assert "needs 'update'" in text
    assert "the vantage 'client' does not show" in text
    assert "link, server" in text


def test_tls_hides_all_but_sizes_from_a_link_and_nothing_from_the_server(small: Any) -> None:
    encrypted = small(server={"tls": True})
    assert threat.view(spied(encrypted).adversaries[0], encrypted).sees == {"sizes"}
    assert "'link' with TLS does not show; it is seen from: server" in refusal(spied(encrypted))
    assert accepted(spied(encrypted, vantage="server"))


def test_unknown_words_and_powers_are_the_plugins_mistake(small: Any) -> None:
    assert "asks for 'gradients', which no threat model has" in refusal(
        spied(small(), Nosy(needs=frozenset({"gradients"})))
    )
    assert "needs the power 'alter_model', which is not granted" in refusal(
        spied(small(), Nosy(powers=frozenset({"alter_model"})))
    )
    assert "cannot be granted" in refusal(spied(small(), powers=("alter_update",)))
    assert 'belongs to the vantage "server"' in refusal(spied(small(), powers=("alter_model",)))


def test_a_plugin_without_the_methods_is_no_adversary(small: Any) -> None:
    assert "has no 'needs', so it is no adversary" in refusal(spied(small(), plugin=Component("x", None)))


@pytest.mark.parametrize(
    ("policy", "seen"),
    [
        ("share_batch", {"running_statistics", "batch_statistics"}),
        ("share_running", {"running_statistics"}),
        ("freeze", {"running_statistics"}),
        ("local", set()),
        ("group_norm", set()),
    ],
)
def test_statistics_that_the_policy_puts_on_the_wire_are_seen(small: Any, policy: str, seen: set[str]) -> None:
    experiment = spied(small(model={"name": "resnet18"}, clients={"batchnorm": policy}))
    sees = threat.view(experiment.adversaries[0], experiment).sees
    assert sees - {"sizes", "global_model", "update", "num_examples", "training_details"} == seen


def test_a_model_without_batchnorm_shows_no_statistics(small: Any) -> None:
    experiment = spied(small())
    assert threat.view(experiment.adversaries[0], experiment).sees <= set(SIGHTS)


def test_the_description_says_who_sees_what_and_what_not(small: Any) -> None:
    (view,) = threat.describe(spied(small(), targets=(0, 2)))
    assert "an eavesdropper on the link between the server and clients 0 and 2" in view["words"]
    assert "each targeted client's update (after the client's defenses)" in view["sees"]
    assert view["knows"] == ["the labels of the private batch"]
    assert "its own data" not in view["does_not_see"], "an eavesdropper has none"
    assert "which defenses the client uses, with their settings" in view["does_not_see"]
    assert not any("BatchNorm" in item for item in view["does_not_see"])


def test_of_a_sum_the_description_says_that_no_single_update_is_seen(small: Any) -> None:
    experiment = spied(small(), vantage="server", targets=(0, 1, 3), aggregate=True)
    (view,) = threat.describe(experiment)
    assert "the sum of the targeted clients' updates (after their defenses)" in view["sees"]
    assert "how many examples the sum was made from" in view["sees"]
    assert view["knows"] == ["the labels of the private batches"]
    assert view["does_not_see"][0] == "any single client's update"
    assert "Of clients 0, 1 and 3 it is shown the sum alone." in view["words"]
    everything = " ".join([view["words"], *view["sees"], *view["knows"]])
    assert "each targeted client" not in everything
    assert "the private batch " not in everything
    assert threat.situation(experiment.adversaries[0], experiment).aggregate


def test_a_sum_of_one_client_is_said_to_be_its_update(small: Any) -> None:
    (view,) = threat.describe(spied(small(), vantage="server", targets=(2,), aggregate=True))
    assert "each targeted client's update (after the client's defenses)" in view["sees"]
    assert "with one target the sum is that client's update" in view["words"]
    assert "any single client's update" not in view["does_not_see"]


def test_every_word_of_a_sum_is_one_of_the_table() -> None:
    assert set(threat.SUMMED) <= set(threat.WORDS)
    assert threat.words("own_data", summed=True) == threat.WORDS["own_data"]
    assert threat.words("update") == threat.WORDS["update"] != threat.words("update", summed=True)


@dataclass(frozen=True)
class Picky(Nosy):
    """Objects to what it is told to."""

    to: str = ""

    def objection(self, known: Situation) -> str | None:
        return "not this situation" if self.to == "situation" else None

    def objection_to(self, model: Any, known: Situation) -> str | None:
        return "not this model" if self.to == "model" else None


def test_objections_come_in_the_words_of_the_plugin(small: Any) -> None:
    experiment = spied(small(), Picky(to="situation"))
    assert "does not fit this experiment (model 'mlp'): not this situation" in refusal(experiment)
    known = threat.situation(experiment.adversaries[0], experiment)
    model: Any = object()
    assert threat.objection(Picky(), known, model) is None
    assert threat.objection(Nosy(), known, model) is None
    assert threat.objection(Picky(to="model"), known) is None
    assert threat.objection(Picky(to="model"), known, model) == "not this model"
