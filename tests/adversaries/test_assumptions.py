"""The table of what attacks assume: made from what they declare, and the same in the documentation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

import fedsim
from fedsim.adversaries import assumptions
from fedsim.adversaries.base import Situation
from fedsim.cli import main

DOCS = Path(fedsim.__file__).parent.parent / "docs" / "attacks.md"


@dataclass(frozen=True)
class Made:
    """Made up. Source: A. Uthor, "Title" (VENUE 2030), equation 1. More words."""

    labels: Literal["known", "guessed", "sought"] = "known"
    statistics: bool = False

    powers: ClassVar[frozenset[str]] = frozenset()

    @property
    def needs(self) -> frozenset[str]:
        needs = {"update", "global_model", "defenses"}
        needs |= {"labels"} if self.labels == "known" else set()
        return frozenset(needs | ({"batch_statistics"} if self.statistics else set()))

    def objection(self, situation: Situation) -> str | None:
        return "one image alone" if max(situation.batch_sizes) > 1 else None


def test_a_row_says_what_is_needed_always_by_default_and_with_which_setting() -> None:
    row = assumptions.of("made", Made)
    assert row.sees == ("global_model", "update")
    assert row.knows == {
        "labels": "default (not with labels = guessed, sought)",
        "batch_statistics": "with statistics = true",
        "running_statistics": "",
        "mixing_indices": "",
        "mixing_coefficients": "",
        "defenses": "yes",
    }
    assert row.reach == {"batch above 1": False, "local steps above 1": True, "sum of clients": True}
    assert row.source == 'A. Uthor, "Title" (VENUE 2030), equation 1'


def test_the_table_knows_what_the_papers_say() -> None:
    rows = {row.name: row for row in assumptions.all_of_them()}
    assert rows["huang"].knows["batch_statistics"].startswith("default")
    assert rows["geiping"].knows["labels"].startswith("default")
    assert rows["dlg"].knows["labels"] == "with labels = known"
    assert not any(rows["r_gap"].knows.values())
    assert not rows["r_gap"].reach["batch above 1"]
    assert rows["geiping_fedavg"].reach["local steps above 1"]
    assert not rows["spear"].reach["local steps above 1"]


def test_the_documentation_has_the_table_as_it_is() -> None:
    if not DOCS.exists():
        pytest.skip("installed without the documentation")
    _, _, rest = DOCS.read_text(encoding="utf-8").partition("<!-- assumptions -->\n")
    table = rest.partition("\n<!-- end -->")[0].splitlines()
    ours = [line for line in assumptions.markdown().splitlines() if not line.startswith("| `gray`")]
    assert table == ours, "run `fedsim list assumptions` and paste its output"


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "assumptions"]) == 0
    assert "| `geiping` |" in capsys.readouterr().out
    assert main(["list", "assumptions", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["assumptions"]
    assert {"name", "source", "sees", "knows", "reach"} == set(rows[0])
