"""Each rule for derivations catches what breaks it, and nothing else does; what conforms passes."""

from __future__ import annotations

from typing import Any

import broken_derivations as broken
import pytest

from fedsim.testing import ConformanceError, check_derivation
from fedsim.testing.derivation import DECLARATION_RULES, TRIAL_RULES, something_is_derived

CASES: list[tuple[str, Any, str]] = [
    ("has_its_parts", broken.Partial, "has no method `derive`"),
    ("needs_powers_and_gives_are_known_words", broken.Generous, "names 'truth'"),
    ("powers_have_their_methods", broken.Unarmed, "has no method `alter_request`"),
    ("changes_nothing_it_is_given", broken.Asking, "changes `request"),
    ("objections_are_words", broken.Curt, "returns False"),
    ("reads_only_what_it_declares", broken.Nosy, "reads `colluders` without declaring 'colluders'"),
    ("raises_nothing", broken.Failing, "on server: single updates): raises AssertionError: no sum"),
    ("returns_derived", broken.Bare, "returns list, not Derived"),
    ("grants_what_it_gives", broken.Silent, "without ['labels'] among its `granted`"),
    ("shows_what_it_grants", broken.Boasting, "grants 'labels' and shows nothing of it"),
    ("updates_fit_the_model", broken.Slim, "name all of them"),
    ("tells_of_one_client", broken.Summing, "of several `clients`"),
    ("keeps_public_facts", broken.Curtailing, "without the facts model"),
    ("survives_storage", broken.Unstorable, "cannot be stored"),
    ("something_is_derived", broken.Idle, "nothing was there"),
    ("changes_nothing_it_is_given", broken.Vandal, "changes `seen.0.tensors.update/"),
    ("leaves_shared_generators_alone", broken.Sharing, "uses torch's generator"),
    ("gives_the_same_again", broken.Moody, "`notes.0`"),
]
"""(rule, what breaks it, words of the finding)"""


@pytest.mark.parametrize(("rule", "cls", "words"), CASES, ids=[f"{rule}-{cls.__name__}" for rule, cls, _ in CASES])
def test_each_rule_catches_what_breaks_it(rule: str, cls: Any, words: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_derivation(cls)
    assert caught.value.rules == {rule}, str(caught.value)
    assert words in str(caught.value)


def test_every_rule_has_a_case() -> None:
    rules = {rule.__name__ for rule in (*DECLARATION_RULES, *TRIAL_RULES, something_is_derived)}
    assert rules == {case[0] for case in CASES}


def test_what_conforms_passes() -> None:
    assert check_derivation(broken.Fine) is None  # type: ignore[func-returns-value]


def test_a_query_of_ones_own_is_tried() -> None:
    with pytest.raises(ConformanceError, match="changes `request"):
        check_derivation(broken.Asking, requests={"unmask": {"survivors": [0], "dropped": [1]}})
