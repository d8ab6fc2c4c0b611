"""Which attack assumes what: Table 1 of Huang et al. (NeurIPS 2021), for every adversary there is.

Nothing here is written down about any attack. What it must be granted is what it declares to need, with its defaults
and with each choice among its settings; what it works on is what it does not object to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fedsim import plugins
from fedsim.adversaries.base import Situation
from fedsim.errors import InputError
from fedsim.experiment import KNOWLEDGE

ONE = Situation(
    model="any", has_batchnorm=None, batchnorm="share_running", algorithm="fedsgd", one_gradient=True, batch_sizes=(1,)
)
REACH: dict[str, dict[str, Any]] = {
    "batch above 1": {"batch_sizes": (8,)},
    "local steps above 1": {"algorithm": "fedavg", "one_gradient": False},
    "sum of clients": {"batch_sizes": (1, 1), "aggregate": True},
}
"""Situations harder than one image's gradient, and in which of their facts they differ from it."""


@dataclass(frozen=True)
class Assumptions:
    """What one adversary assumes.

    sees: what its vantage must show. knows: what must be granted besides, and when: "yes" whatever its settings,
    "default (not with KEY = VALUE)", "with KEY = VALUE", or "" for never. reach: whether it takes on each of REACH.
    """

    name: str
    source: str
    sees: tuple[str, ...]
    knows: dict[str, str]
    reach: dict[str, bool]


def all_of_them() -> list[Assumptions]:
    """A row for every adversary that can be made with its default settings, in the order of their names."""
    rows = []
    for name in plugins.names("adversaries"):
        try:
            cls = plugins.load("adversaries", name)
            rows.append(of(name, cls))
        except (InputError, TypeError):  # broken, or with settings that have no default
            continue
    return rows


def of(name: str, cls: type) -> Assumptions:
    """What an adversary's class assumes."""
    default = cls()
    needs = frozenset(default.needs)
    variants = [(f"{key} = {shown(value)}", frozenset(one.needs)) for key, value, one in choices_of(cls)]
    knows = {}
    for item in KNOWLEDGE:
        with_it = [words for words, one in variants if item in one and item not in needs]
        without = [words for words, one in variants if item not in one and item in needs]
        if item in needs:
            knows[item] = f"default (not with {_any(without)})" if without else "yes"
        else:
            knows[item] = f"with {_any(with_it)}" if with_it else ""
    reach = {words: _takes(default, change) for words, change in REACH.items()}
    return Assumptions(name, _source(cls), tuple(sorted(needs - set(KNOWLEDGE))), knows, reach)


def markdown() -> str:
    """The table, in Markdown."""
    heads = ["attack", "must see", *(item.replace("_", " ") for item in KNOWLEDGE), *REACH]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in all_of_them():
        sees = ", ".join(item.replace("_", " ") for item in row.sees)
        reach = ["yes" if fits else "no" for fits in row.reach.values()]
        lines.append(
            "| " + " | ".join([f"`{row.name}`", sees, *(row.knows[k] or "-" for k in KNOWLEDGE), *reach]) + " |"
        )
    return "\n".join(lines)


def choices_of(cls: type) -> Iterator[tuple[str, Any, Any]]:
    """(setting, value, the adversary with it) for every other value of every setting that is a choice."""
    if not is_dataclass(cls):
        return
    hints = get_type_hints(cls)
    default = cls()
    for one in fields(cls):
        hint = hints[one.name]
        choices = get_args(hint) if get_origin(hint) is Literal else (False, True) if hint is bool else ()
        for value in choices:
            if value != getattr(default, one.name):
                yield one.name, value, cls(**{one.name: value})


def _takes(adversary: Any, change: dict[str, Any]) -> bool:
    """Whether it objects to nothing more than it does to a single image's gradient."""
    if not hasattr(adversary, "objection"):
        return True
    # Whether the model has BatchNorm is another matter; some settings fit neither kind in all situations.
    return any(
        adversary.objection(replace(ONE, has_batchnorm=has)) is None
        and adversary.objection(replace(ONE, has_batchnorm=has, **change)) is None
        for has in (False, True)
    )


def _source(cls: type) -> str:
    """The paper, as the class's docstring names it."""
    text = " ".join((cls.__doc__ or "").split())
    _, _, rest = text.partition("Source: ")
    # A full stop ends the sentence, but not that of an initial or of "et al."
    return re.split(r"(?<![A-Z])(?<!al)\.(?: |$)", rest)[0]


def shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _any(words: list[str]) -> str:
    """`labels = joint` and the like, the same key named once."""
    by_key: dict[str, list[str]] = {}
    for one in words:
        key, _, value = one.partition(" = ")
        by_key.setdefault(key, []).append(value)
    return "; ".join(f"{key} = {', '.join(values)}" for key, values in by_key.items())
