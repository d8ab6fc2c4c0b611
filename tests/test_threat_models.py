"""Threat models by name: the published table, what a file that names one gets, what it cannot say besides."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from asking import ask

import fedsim
from fedsim import plugins, threat_models
from fedsim.adversaries import fitting
from fedsim.experiment import KNOWLEDGE, POWERS, SIGHTS
from fedsim.schema import Problems
from fedsim.threat_models import CAPABILITIES, THREAT_MODELS, expand, find

DOCS = Path(fedsim.__file__).parent.parent / "docs" / "threat-models.md"
PATH = ("adversaries", 0)
ENTRY: dict[str, Any] = {"id": "x", "vantage": "server", "targets": [0], "rounds": [1]}

PUBLISHED = """
A Eavesdropper                       1000000
B Informed Eavesdropper              1100000
C Parameter-Aware Eavesdropper       1110000
D Data-Enhanced Eavesdropper         1111000
E Statistical-Informed Eavesdropper  1111100
F Active Manipulator                 1110010
G Data-Enhanced Manipulator          1111010
H Active Client Manipulator          1111011
"""
"""The authors' table, a digit for each of its columns from Model Updates to Client Selection."""


def expanded(**keys: Any) -> tuple[dict[str, Any], list[str]]:
    problems = Problems("x.toml", None, {})
    return expand({**ENTRY, **keys}, PATH, problems), problems.found


# --- the table -----------------------------------------------------------------------------------------------------


def test_the_table_is_the_published_one() -> None:
    for line, model in zip(PUBLISHED.strip().splitlines(), THREAT_MODELS, strict=True):
        letter, *title, marks = line.split()
        assert (model.letter, model.title) == (letter, " ".join(title))
        assert "".join(str(int(key in model.has)) for key in CAPABILITIES) == marks, model.name
    assert [one.title for one in CAPABILITIES.values()] == [
        "Model Updates",
        "Basic Knowledge",
        "Training Details",
        "Surrogate Data",
        "Client Data Distribution",
        "Active Manipulation",
        "Client Selection",
    ]


def test_every_model_is_found_by_name_and_by_letter() -> None:
    names = [one.name for one in THREAT_MODELS]
    assert len(set(names)) == 8
    assert names[1] == "informed-eavesdropper"
    for one in THREAT_MODELS:
        assert find(one.name) is one and find(one.letter) is one
    assert find("Informed Eavesdropper") is None


def test_a_model_speaks_in_the_words_of_an_experiment() -> None:
    for one in CAPABILITIES.values():
        assert set(one.sees) <= set(SIGHTS)
        assert set(one.knows) <= set(KNOWLEDGE)
        assert set(one.powers) <= set(POWERS)
        assert any((one.sees, one.knows, one.powers, one.priors, one.absent)), f"{one.title} means nothing here"


def test_no_two_models_that_are_offered_come_to_the_same() -> None:
    offered = [one for one in THREAT_MODELS if one.refused is None]
    assert [one.letter for one in offered] == ["A", "B", "C", "E", "F"]
    meaning = {(one.sees, one.hides, one.knows, one.powers, one.priors) for one in offered}
    assert len(meaning) == len(offered)


# --- in a file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "name", "knows", "powers", "hides"),
    [
        ("A", "eavesdropper", [], [], ["training_details"]),
        ("B", "informed-eavesdropper", [], [], ["training_details"]),
        ("parameter-aware-eavesdropper", "parameter-aware-eavesdropper", [], [], []),
        ("E", "statistical-informed-eavesdropper", ["batch_statistics", "running_statistics"], [], []),
        ("active-manipulator", "active-manipulator", [], ["alter_model"], []),
    ],
)
def test_a_name_or_letter_is_written_out(
    word: str, name: str, knows: list[str], powers: list[str], hides: list[str]
) -> None:
    entry, problems = expanded(threat_model=word)
    assert problems == []
    assert entry == {**ENTRY, "threat_model": name, "knows": knows, "powers": powers, "hides": hides}
    again = Problems("x.toml", None, {})
    assert expand(entry, PATH, again) == entry, "what a run folder holds must be read back"
    assert again.found == []


def test_what_is_said_besides_may_say_the_same_in_any_order() -> None:
    entry, problems = expanded(threat_model="E", knows=["running_statistics", "batch_statistics"], powers=[])
    assert problems == []
    assert entry["knows"] == ["batch_statistics", "running_statistics"]


def test_without_a_name_nothing_is_touched() -> None:
    entry, problems = expanded(knows=["labels"], hides=["num_examples"])
    assert (entry, problems) == ({**ENTRY, "knows": ["labels"], "hides": ["num_examples"]}, [])


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ({"threat_model": "B", "knows": ["labels"]}, "knows", ['["labels"]', "grants []", 'labels = "ilrg"']),
        ({"threat_model": "E", "knows": []}, "knows", ["[]", '"batch_statistics", "running_statistics"', "(E)"]),
        ({"threat_model": "E", "knows": ["batch_statistics"]}, "knows", ['["batch_statistics"]', "leave knows out"]),
        ({"threat_model": "C", "powers": ["alter_model"]}, "powers", ['["alter_model"]', "gives []"]),
        ({"threat_model": "F", "powers": ["alter_model", "alter_requests"]}, "powers", ["alter_requests"]),
        ({"threat_model": "A", "hides": []}, "hides", ['hides ["training_details"]']),
        ({"threat_model": "A", "vantage": "client"}, "vantage", ['"client"', '"link" or "server"']),
        ({"threat_model": "F", "vantage": "link"}, "vantage", ['"link"', 'stands at "server"']),
        ({"threat_model": "F", "colluders": [1]}, "colluders", ["leave colluders out"]),
    ],
)
def test_what_does_not_agree_is_refused_with_both_sides(keys: dict[str, Any], key: str, words: list[str]) -> None:
    entry, problems = expanded(**keys)
    (problem,) = problems
    model = find(keys["threat_model"])
    assert model is not None
    assert problem.startswith(f"x.toml:1: adversaries[0].{key}: ") or problem.startswith(
        f"x.toml: adversaries[0].{key}: "
    )
    for word in [*words, "does not agree with", f'threat_model = "{model.name}"']:
        assert word in problem
    assert entry["knows"] == list(model.knows), "the model's word holds, so that nothing else follows from the conflict"


@pytest.mark.parametrize(
    ("letter", "lacking", "instead"),
    [
        ("D", "surrogate data,", "'parameter-aware-eavesdropper' (C)"),
        ("G", "surrogate data,", "'active-manipulator' (F)"),
        ("H", "surrogate data and a choice of the clients", "'active-manipulator' (F)"),
    ],
)
def test_what_cannot_be_granted_is_refused_and_not_faked(letter: str, lacking: str, instead: str) -> None:
    _, problems = expanded(threat_model=letter)
    (problem,) = problems
    assert "adversaries[0].threat_model: " in problem
    assert lacking in problem and instead in problem and "cannot grant" in problem


def test_the_statistical_model_is_offered_and_says_what_it_lacks() -> None:
    model = find("E")
    assert model is not None and model.refused is None
    assert model.absent == ("surrogate data",)


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("informed-evesdropper", "did you mean 'informed-eavesdropper'?"),
        ("Active Manipulator", "did you mean 'active-manipulator'?"),
        ("Z", "known: active-client-manipulator, "),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(word: str, answer: str) -> None:
    entry, problems = expanded(threat_model=word)
    (problem,) = problems
    assert problem.endswith(answer) or answer in problem
    assert "knows" not in entry


@pytest.mark.parametrize("keys", [{"threat_model": 3}, {"threat_model": ["B"]}, {"threat_model": True}])
def test_what_is_no_text_is_left_to_the_reader_of_the_entry(keys: dict[str, Any]) -> None:
    assert expanded(**keys) == ({**ENTRY, **keys}, [])


@pytest.mark.parametrize("knows", [3, "labels", [1], {"a": 1}])
def test_so_is_a_key_of_the_wrong_type(knows: Any) -> None:
    entry, problems = expanded(threat_model="B", knows=knows)
    assert entry["knows"] == knows and problems == []


# --- what an attack presumes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """Made up."""

    labels: Literal["known", "guessed"] = "known"
    statistics: Literal["none", "exact", "running"] = "running"
    tv: float = 0.1
    independent: ClassVar[bool] = False
    powers: ClassVar[frozenset[str]] = frozenset()

    @property
    def needs(self) -> frozenset[str]:
        needs = {"update", "global_model", "num_examples"}
        needs |= {"labels"} if self.labels == "known" else set()
        return frozenset(needs | ({f"{self.statistics}_statistics"} if self.statistics != "none" else set()))

    @property
    def presumes(self) -> dict[str, str]:
        return {"images are smooth": "tv = 0"} if self.tv else {}


class Independent(Made):
    @property
    def presumes(self) -> dict[str, str]:
        return {"images are smooth": "tv = 0", "they are independent": ""}


class Active(Made):
    powers = frozenset({"alter_model"})


class Unrolled(Made):
    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"update", "global_model", "training_details"})


def test_only_who_has_basic_knowledge_may_presume_anything() -> None:
    against = threat_models.objection("eavesdropper", Made())
    assert against is not None
    for word in ("images are smooth", "set tv = 0, or use", "'informed-eavesdropper' (B)"):
        assert word in against
    assert threat_models.objection("eavesdropper", Made(tv=0)) is None
    for name in (None, "informed-eavesdropper", "active-manipulator"):
        assert threat_models.objection(name, Made()) is None
    stubborn = threat_models.objection("eavesdropper", Independent())
    assert stubborn is not None and "set " not in stubborn
    assert threat_models.objection("eavesdropper", object()) is None, "who declares nothing presumes nothing"


def test_where_an_adversary_fits_is_computed_from_what_it_declares() -> None:
    under = fitting.of("made", Made).under
    assert under["E"] == "with labels = guessed", "E has the statistics, nobody has labels"
    assert under["C"] == under["B"] == under["F"] == "with labels = guessed; statistics = none"
    assert under["A"] == "with labels = guessed; statistics = none; tv = 0"
    assert "D" not in under and "G" not in under and "H" not in under


def test_where_an_adversary_does_not_fit() -> None:
    assert "A" not in fitting.of("independent", Independent).under
    assert set(fitting.of("active", Active).under) == {"F"}
    assert {"A", "B"}.isdisjoint(fitting.of("unrolled", Unrolled).under)
    assert set(fitting.of("unrolled", Unrolled).under) == {"C", "E", "F"}


CLASSED = {"dlg": "A", "idlg": "A", "geiping": "B", "cocktail_party": "B", "dimitrov": "C", "yin": "E"}
"""Where the authors of the table put attacks that fedsim has, but for those that work with less (see the document)."""


@pytest.mark.parametrize("name", CLASSED)
def test_the_weakest_model_that_an_attack_fits_is_the_one_that_the_authors_put_it_under(name: str) -> None:
    """With its settings as published, but for labels, which the authors' table has in a column of its own."""
    under = fitting.of(name, plugins.load("adversaries", name)).under
    weakest = next(letter for letter, how in under.items() if how == "yes" or re.fullmatch(r"with labels = [^;]*", how))
    assert weakest == CLASSED[name]


def test_who_must_know_the_defense_fits_under_none() -> None:
    assert fitting.of("carlini", plugins.load("adversaries", "carlini")).under == {}


# --- what is printed -----------------------------------------------------------------------------------------------


def test_the_documentation_has_the_tables_as_they_are() -> None:
    if not DOCS.exists():
        pytest.skip("installed without the documentation")
    _, _, rest = DOCS.read_text(encoding="utf-8").partition("<!-- threat models -->\n")
    table = rest.partition("\n<!-- end -->")[0].splitlines()
    ours = [line for line in fitting.markdown().splitlines() if not line.startswith("| `gray`")]
    assert table == ours, "run `fedsim list threat-models` and paste its output"


def test_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    answer = ask(capsys, "list", "threat-models")
    assert (answer.code, answer.err) == (0, "")
    assert "| B | `informed-eavesdropper` | yes | yes | - |" in answer.out
    assert "not offered: it is defined by surrogate data" in answer.out
    assert "| `geiping` |" in answer.out
    rows = json.loads(ask(capsys, "list", "threat-models", "--json").out)["threat-models"]
    assert [row["letter"] for row in rows] == list("ABCDEFGH")
    assert rows[0]["capabilities"] == {key: key == "model_updates" for key in CAPABILITIES}
    assert rows[3]["adversaries"] == {} and rows[3]["refused"]
    assert rows[4]["adversaries"]["yin"] == "yes"


def test_a_slip_of_the_word_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "list", "threat-model").problems == [
        "list: there is no kind 'threat-model'; did you mean 'threat-models'?"
    ]
