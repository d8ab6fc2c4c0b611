"""Which adversary fits under which canned threat model, and the table of these models, for `fedsim list threat-models`.

Nothing here is written down about any attack: what it needs, and what it presumes, is what it declares, with its
defaults and with each choice among its settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedsim import plugins
from fedsim.adversaries import assumptions
from fedsim.errors import InputError
from fedsim.threat_models import CAPABILITIES, THREAT_MODELS, ThreatModel, presumes

YES = "yes"


@dataclass(frozen=True)
class Fit:
    """An adversary, and by letter under which threat models it works: "yes" as it is, or "with KEY = VALUE, ..."."""

    name: str
    under: Mapping[str, str]


def all_of_them() -> list[Fit]:
    """Every adversary that can be made with its default settings, in the order of their names."""
    rows = []
    for name in plugins.names("adversaries"):
        try:
            rows.append(of(name, plugins.load("adversaries", name)))
        except (InputError, TypeError):  # broken, or with settings that have no default
            continue
    return rows


def of(name: str, cls: type) -> Fit:
    """Where an adversary's class fits."""
    found = {model.letter: _under(cls, model) for model in THREAT_MODELS if model.refused is None}
    return Fit(name, {letter: how for letter, how in found.items() if how})


def markdown() -> str:
    """Three tables in Markdown: the authors', what each model is in fedsim, and which adversary fits."""
    heads = ["", "threat model", *(one.title for one in CAPABILITIES.values())]
    rows = [[one.letter, f"`{one.name}`", *_columns(one)] for one in THREAT_MODELS]
    ours = [_ours(one) for one in THREAT_MODELS]
    fits = [[f"`{fit.name}`", *_cells(fit)] for fit in all_of_them()]
    return "\n\n".join(
        (
            _table(heads, rows),
            _table(["", "vantage", "sees at most", "is not shown", "knows", "powers", "in fedsim"], ours),
            _table(["attack", "as it is", "with other settings"], fits),
        )
    )


def as_data() -> list[dict[str, Any]]:
    """The same as JSON data, a row for each threat model."""
    fits = all_of_them()
    return [
        {
            "name": one.name,
            "letter": one.letter,
            "title": one.title,
            "words": one.words,
            "capabilities": {key: key in one.has for key in CAPABILITIES},
            "vantages": list(one.vantages),
            "sees": [item for key in one.has for item in CAPABILITIES[key].sees],
            "hides": list(one.hides),
            "knows": list(one.knows),
            "powers": list(one.powers),
            "priors": one.priors,
            "absent": list(one.absent),
            "refused": one.refused,
            "adversaries": {fit.name: fit.under[one.letter] for fit in fits if one.letter in fit.under},
        }
        for one in THREAT_MODELS
    ]


def _under(cls: Any, model: ThreatModel) -> str:
    """How a class's adversary fits under one model: "yes", "with ...", or "" if no choice of settings makes it fit."""
    has = model.sees | set(model.knows)
    default = cls()
    if set(default.powers) - set(model.powers):
        return ""
    missing = set(default.needs) - has
    choices: dict[str, list[Any]] = {}
    for key, value, one in assumptions.choices_of(cls):
        # A choice that does without something of what is missing, and asks for nothing else in its stead.
        if missing - set(one.needs) and set(one.needs) - has <= missing:
            choices.setdefault(key, []).append(value)
    if missing and set(cls(**{key: values[0] for key, values in choices.items()}).needs) - has:
        return ""
    changes = [f"{key} = {', '.join(map(assumptions.shown, values))}" for key, values in choices.items()]
    if not model.priors:
        presumed = presumes(default)
        if not all(presumed.values()):
            return ""
        changes += presumed.values()
    return f"with {'; '.join(changes)}" if changes else YES


def _columns(model: ThreatModel) -> list[str]:
    return [YES if key in model.has else "-" for key in CAPABILITIES]


def _ours(model: ThreatModel) -> list[str]:
    if model.refused:
        return [model.letter, *["-"] * 5, f"not offered: {model.refused}"]
    note = f"offered without {' and '.join(model.absent)}, which it cannot be granted" if model.absent else "offered"
    sees = [item for key in model.has for item in CAPABILITIES[key].sees]
    lists = [model.vantages, sees, model.hides, model.knows, model.powers]
    return [model.letter, *(", ".join(one).replace("_", " ") or "-" for one in lists), note]


def _cells(fit: Fit) -> list[str]:
    by_change: dict[str, list[str]] = {}
    for letter, how in fit.under.items():
        by_change.setdefault(how, []).append(letter)
    as_it_is = ", ".join(by_change.pop(YES, [])) or "-"
    return [as_it_is, "<br>".join(f"{', '.join(letters)} {how}" for how, letters in by_change.items()) or "-"]


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
