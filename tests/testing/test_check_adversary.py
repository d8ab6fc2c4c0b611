"""Each rule for adversaries catches what breaks it, and nothing else does; what conforms passes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import broken_adversaries as broken
import pytest
import torch
from heavy_plugin import Laden

from fedsim.testing import ConformanceError, ConformanceWarning, check_adversary, stored
from fedsim.testing.adversary import DECLARATION_RULES, something_could_be_tried
from fedsim.testing.attack_rules import LAST_RULES, OBJECTION_RULES, TRIAL_RULES, works_in_a_process_of_its_own
from fedsim.testing.classes import CLASS_RULES
from fedsim.testing.threat_words import altered_models_fit, altered_requests_can_be_sent


@dataclass
class Warm:
    """Can be changed. Source: none."""


def local() -> type:
    @dataclass(frozen=True)
    class Local(broken.Fine):
        """Is nowhere to be found. Source: none."""

    return Local


CASES: list[tuple[str, Any, Mapping[str, Any], str]] = [
    ("is_a_frozen_dataclass", broken.Fine(), {}, "not a class"),
    ("is_a_frozen_dataclass", broken.Thawed, {}, "no dataclass"),
    ("is_a_frozen_dataclass", Warm, {}, "frozen=True"),
    ("can_be_found_by_name", local(), {}, "at the top of a module"),
    ("says_what_it_does", broken.Speechless, {}, "docstring"),
    ("settings_have_types", broken.Untyped, {}, "takes anything"),
    ("settings_have_types", broken.Mistyped, {}, "must be at most 1.0, not 7.0"),
    ("settings_leave_reserved_words_alone", broken.Homonym, {}, "Homonym.targets"),
    ("settings_leave_reserved_words_alone", broken.Needy, {}, "annotate it as ClassVar"),
    ("settings_fit", broken.Fine, {"level": 2}, "level: must be at most 1.0, not 2"),
    ("settings_fit", broken.Fine, {"levle": 1}, "did you mean 'level'"),
    ("settings_are_hashable", broken.Listed, {}, "use tuples"),
    ("is_asked_without_torch", Laden, {}, "its module `heavy_plugin` imports torch"),
    ("is_asked_without_torch", broken.Heavy, {}, "to say what it needs or objects to"),
    ("has_its_parts", broken.Partial, {}, "has no method `attack`"),
    ("needs_are_known_words", broken.Clairvoyant, {}, "names 'truth', which no threat model has; known: sizes"),
    ("powers_are_known_words", broken.Mighty, {}, "not a frozenset"),
    ("powers_have_their_methods", broken.Unarmed, {}, "has no method `alter_model`"),
    ("powers_have_their_methods", broken.Trickster, {}, "is never called"),
    ("altered_models_fit", broken.Shrinking, {}, "keep shape and type"),
    ("changes_nothing_it_is_given", broken.InPlace, {}, "changes `parameters.fc1.weight`"),
    ("altered_requests_can_be_sent", broken.Asking, {}, "entry 'more' is {1, 2}"),
    ("objections_are_words", broken.Curt, {}, "returns False"),
    ("objection_to_is_words", broken.CurtToModels, {}, "returns 0"),
    ("changes_nothing_it_is_given", broken.Meddling, {}, "model"),
    ("reads_only_what_it_declares", broken.Nosy, {}, "reads `known/labels` without declaring 'labels'"),
    ("reads_only_what_it_declares", broken.Peeking, {}, "reads `bytes_up` without declaring 'sizes'"),
    ("raises_nothing", broken.Failing, {}, "ZeroDivisionError: by zero"),
    ("capture_returns_jobs", broken.Jobless, {}, "gives Observation, not a Job"),
    ("something_is_attacked", broken.Idle, {}, "gives no job"),
    ("jobs_survive_storage", broken.Unstorable, {}, "cannot be stored"),
    ("jobs_survive_storage", broken.Renumbered, {}, "`notes.what`"),
    ("answers_can_be_scored", broken.Throng, {}, "6 images were returned for a batch of 3"),
    ("images_are_in_range", broken.Bright, {}, "clamp(0, 1)"),
    ("images_are_in_range", broken.Double, {}, "float64"),
    ("answers_are_named", broken.Nameless, {}, "'a/b'"),
    ("keeps_nothing", broken.Hoarding, {}, "`Hoarding.seen"),
    ("changes_nothing_it_is_given", broken.Vandal, {}, "changes `job.observations.0.tensors.model/"),
    ("leaves_shared_generators_alone", broken.Sharing, {}, "uses torch's generator"),
    ("leaves_shared_generators_alone", broken.SharingNumPy, {}, "uses NumPy's generator"),
    ("gives_the_same_again", broken.Moody, {}, "`objective`"),
    ("something_could_be_tried", broken.Refusing, {}, "it is tired"),
    ("several_jobs_have_as_many_answers", broken.Short, {}, "gives 1 answers to 2 jobs"),
    ("works_in_a_process_of_its_own", broken.Homebound, {"process": True}, "in a process of its own"),
]
"""(rule, what breaks it, keywords, words of the finding)"""


@pytest.mark.parametrize(
    ("rule", "cls", "keywords", "words"), CASES, ids=[f"{rule}-{place}" for place, (rule, *_) in enumerate(CASES)]
)
def test_each_rule_catches_what_breaks_it(rule: str, cls: Any, keywords: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_adversary(cls, **keywords)
    assert caught.value.rules == {rule}, str(caught.value)
    assert words in str(caught.value)


def test_every_rule_has_a_case() -> None:
    rules = (*CLASS_RULES, *DECLARATION_RULES, *TRIAL_RULES, *LAST_RULES, *OBJECTION_RULES)
    rules += (altered_models_fit, altered_requests_can_be_sent, something_could_be_tried, works_in_a_process_of_its_own)
    assert {rule.__name__ for rule in rules} == {case[0] for case in CASES}


def test_what_conforms_passes_and_the_shared_generators_stay_as_they_are() -> None:
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_adversary(broken.Fine, level=0.25) is None
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ConformanceError):
        check_adversary(broken.Sharing)
    assert torch.equal(before, torch.get_rng_state())


def test_all_points_are_said_at_once_each_with_the_number_of_its_situations() -> None:
    @dataclass(frozen=True)
    class Bad(broken.Bright):
        level: Any = 0.5
        powers = ["alter_update"]  # noqa: RUF012

    with pytest.raises(AssertionError) as caught, pytest.warns(ConformanceWarning, match="Source: "):
        check_adversary(Bad)
    lines = str(caught.value).splitlines()
    assert lines[0] == "Bad does not conform in 5 points:"
    assert caught.value.rules == {  # type: ignore[attr-defined]
        "can_be_found_by_name",
        "says_what_it_does",
        "settings_have_types",
        "powers_are_known_words",
        "images_are_in_range",
    }
    assert (
        "- Bad.attack (on server: mixtures of images over two rounds, mlp and 1 other situation): its images"
        in lines[-1]
    )


def test_what_a_run_captured_can_be_tried_on(tmp_path: Path) -> None:
    from fedsim.adversaries.storage import JobStore
    from fedsim.testing.observations import shown
    from fedsim.testing.situations import Scene

    (tmp_path / "captures").mkdir()
    store = JobStore(tmp_path / "captures", tmp_path / "jobs")
    for round_ in (2, 1):
        store.put_observation(shown(Scene("mixtures", mixes=True), "link", round_))
    seen = stored(tmp_path)
    assert [one.round for one in seen] == [1, 2]
    check_adversary(broken.Fine, observations=seen)


def test_own_observations_take_the_place_of_made_up_ones_narrowed_to_what_is_declared() -> None:
    from fedsim.testing.observations import shown
    from fedsim.testing.situations import MLP_THREE

    seen = [shown(MLP_THREE, "link", 1)]
    check_adversary(broken.Fine, observations=seen)
    with pytest.raises(ConformanceError, match="reads `known/labels` without declaring 'labels'") as caught:
        check_adversary(broken.Nosy, observations=seen)
    assert caught.value.findings[0].situations == ("observations[0]",)
