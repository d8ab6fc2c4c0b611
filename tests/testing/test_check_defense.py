"""Each rule for defenses catches what breaks it, and nothing else does; what conforms passes."""

from __future__ import annotations

from typing import Any

import broken_defenses as broken
import pytest

from fedsim.testing import ConformanceError, check_defense
from fedsim.testing.defense import DECLARATION_RULES, OBJECTION_RULES, something_could_be_tried
from fedsim.testing.defense_rules import SCENE_RULES

CASES: list[tuple[str, Any, str]] = [
    ("settings_leave_reserved_words_alone", broken.Setting, "annotate it as ClassVar"),
    ("acts_somewhere", broken.Bystander, "has none of encode, mix"),
    ("acts_somewhere", broken.Torn, "both `perturb` and `perturb_at`"),
    ("private_training_is_accounted_for", broken.Unaccounted, "not spend, spent, objection_to, objection_to_plan"),
    ("flags_are_true_or_false", broken.Flagged, "'yes'"),
    ("objections_are_words", broken.Curt, "returns False"),
    ("objection_to_is_words", broken.CurtToModels, "returns False"),
    ("something_could_be_tried", broken.Refusing, "it is tired"),
    ("number_of_images_is_a_number", broken.Insatiable, "returns 'many'"),
    ("raises_nothing", broken.Failing, "on three images in colour, convnet6): raises ValueError: no colour"),
    ("changes_nothing_it_is_given", broken.Vandal, "changes `update.tensors."),
    ("changes_nothing_it_is_given", broken.Careless, "changes `site.model."),
    ("leaves_shared_generators_alone", broken.Sharing, "uses torch's generator"),
    ("gives_the_same_again", broken.Moody, "the second time"),
    ("encoded_batches_can_be_trained_on", broken.Dropping, "keep number, shape and type"),
    ("encoded_batches_can_be_trained_on", broken.Mislabelling, "leave 0 to 3"),
    ("mixtures_say_what_they_are_made_of", broken.Overweight, "do not sum to 1"),
    ("mixtures_say_what_they_are_made_of", broken.Elsewhere, "indices leave -1 to"),
    ("updates_keep_names_and_shapes", broken.Flattening, "keep shape and type"),
    ("updates_keep_names_and_shapes", broken.Lossy, "keep all of them"),
    ("finite_stays_finite", broken.Normalising, "of an update of zeros"),
    ("memory_can_be_kept", broken.Forgetful, "no mapping from names to tensors"),
    ("works_without_batches", broken.Reading, "reads_batches: ClassVar[bool] = True"),
    ("gradients_fit_the_model", broken.Averaging, "NaN or Inf for a batch of 0"),
    ("spending_never_falls", broken.Forgiving, "falls from 4 to 3"),
]
"""(rule, what breaks it, words of the finding)"""


@pytest.mark.parametrize(("rule", "cls", "words"), CASES, ids=[f"{rule}-{cls.__name__}" for rule, cls, _ in CASES])
def test_each_rule_catches_what_breaks_it(rule: str, cls: Any, words: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_defense(cls)
    assert caught.value.rules == {rule}, str(caught.value)
    assert words in str(caught.value)


def test_every_rule_has_a_case() -> None:
    """Those for every class are tried with adversaries."""
    rules = (*DECLARATION_RULES, *OBJECTION_RULES, *SCENE_RULES, something_could_be_tried)
    names = {rule.__name__ for rule in rules}
    assert names == {case[0] for case in CASES} - {"settings_leave_reserved_words_alone"}


@pytest.mark.parametrize("cls", [broken.Fine, broken.FineEncoding, broken.FineMixing, broken.FineGradient])
def test_what_conforms_passes(cls: type) -> None:
    assert check_defense(cls) is None  # type: ignore[func-returns-value]
