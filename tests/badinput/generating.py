"""Experiments that ship, spoiled at one to four places: drawn from a number, and drawn the same again from it.

No test is in here. A case is a text (as bytes: not all of them are UTF-8), or a table as a program would hand it over,
and `--set` settings.
"""

from __future__ import annotations

import copy
import functools
import random
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import tomli_w
from badinput import spoiling
from badinput.places import Named, Place, Several, Step, places
from badinput.values import KEYS, TEXTS, fitting, huge, misspelt, nested, strange

from fedsim import plugins
from fedsim.experiment_file import shipped
from fedsim.sweeps import file as sweeps


@dataclass(frozen=True)
class Case:
    """number: what it was drawn from. base: the experiment that was spoiled. kinds: in which ways."""

    number: int
    base: str
    kinds: tuple[str, ...]
    text: bytes | None
    table: dict[str, Any] | None
    settings: tuple[str, ...] = ()


Change = Callable[[dict[str, Any], random.Random], None]


def drawn(number: int) -> Case:
    """Case `number`."""
    rng = random.Random(f"experiment {number}")
    base = rng.choice(shipped())
    table, text, way = copy.deepcopy(_table(base)), _text(base), rng.random()
    if way < 0.2:
        kinds, raw = spoiling.text(text, rng)
        return Case(number, base, kinds, raw, None)
    changes = tuple(rng.choices([*CHANGES], [weight for _, weight in CHANGES.values()], k=_count(rng)))
    if way < 0.35:
        settings = tuple(_setting(table, rng) for _ in range(_count(rng)))
        return Case(number, base, ("--set",), text.encode(), None, settings)
    for change in changes:
        CHANGES[change][0](table, rng)
    if way < 0.45:
        return Case(number, base, changes, None, table)
    return Case(number, base, changes, tomli_w.dumps(table).encode(), None)


def _count(rng: random.Random) -> int:
    return rng.choices((1, 2, 3, 4), (5, 3, 2, 1))[0]


def drawn_sweep(number: int) -> Case:
    """Case `number` of the sweeps that ship, always a text."""
    rng = random.Random(f"sweep {number}")
    base = rng.choice(sweeps.shipped())
    table, whole = copy.deepcopy(_table(base)), _text(base)
    if rng.random() < 0.25:
        kinds, raw = spoiling.text(whole, rng)
        return Case(number, base, kinds, raw, None)
    changes = tuple(rng.choices([*CHANGES], [weight for _, weight in CHANGES.values()], k=_count(rng)))
    for change in changes:
        CHANGES[change][0](table, rng)
    return Case(number, base, changes, tomli_w.dumps(table).encode(), None)


@functools.cache
def _text(name: str) -> str:
    return (resources.files("fedsim.experiments") / f"{name}.toml").read_text(encoding="utf-8")


@functools.cache
def _table(name: str) -> dict[str, Any]:
    return tomllib.loads(_text(name))


# --- ways to spoil a table -----------------------------------------------------------------------------------------


def put(table: dict[str, Any], path: tuple[Step, ...], value: Any) -> None:
    """Set what stands at a path; where the way there is blocked, on the way."""
    here: Any = table
    for step in path[:-1]:
        found = here.get(step) if isinstance(here, dict) else here[step] if _holds(here, step) else None
        if isinstance(found, str):
            found = {"name": found}
            here[step] = found
        if found is None and isinstance(here, dict):
            found = here.setdefault(str(step), {})
        if not isinstance(found, dict | list):
            return
        here = found
    if isinstance(here, dict):
        here[str(path[-1])] = value
    elif _holds(here, path[-1]):
        here[path[-1]] = value


def _holds(here: Any, step: Step) -> bool:
    return isinstance(here, list) and isinstance(step, int) and step < len(here)


def held(table: Any) -> list[tuple[Any, Any]]:
    """Every (table or list, key or position) there is."""
    found, waiting = [], [table]
    while waiting:
        here = waiting.pop()
        steps = list(here) if isinstance(here, dict) else list(range(min(len(here), 20)))
        for step in steps:
            found.append((here, step))
            if isinstance(here[step], dict | list):
                waiting.append(here[step])
    return found


def component(kind: str, key: str, rng: random.Random) -> Any:
    """One that there is, with a setting or two; or nearly one."""
    name = rng.choice([*plugins.names(kind), "off"])
    if rng.random() < 0.15:
        name = misspelt(name, rng)
    if rng.random() < 0.1:
        name += rng.choice((":", ":x", ":resnet18", ":1"))
    if rng.random() < 0.4:
        return name
    table: dict[str, Any] = {key: name}
    section = {"data": table} if kind == "datasets" else {"model": {key: name, "name": name}}
    if kind not in ("datasets", "models"):
        section = {"server": {"strategy": table}} if kind == "strategies" else {"clients": {"defenses": [table]}}
    own = [place for place in places(section) if place.path[:-1] and place.path[0] == next(iter(section))]
    for place in rng.sample(own, min(len(own), rng.randrange(3))):
        table[str(place.path[-1])] = value_for(place.annotation, rng)
    return table


def value_for(annotation: Any, rng: random.Random) -> Any:
    if isinstance(annotation, Named):
        return component(annotation.kind, annotation.key, rng)
    if isinstance(annotation, Several):
        return [component(annotation.kind, "name", rng) for _ in range(rng.randrange(3))]
    return fitting(annotation, rng)


def _place(table: dict[str, Any], rng: random.Random) -> Place:
    return rng.choice(places(table))


def another_value(table: dict[str, Any], rng: random.Random) -> None:
    place = _place(table, rng)
    put(table, place.path, value_for(place.annotation, rng))


def strange_value(table: dict[str, Any], rng: random.Random) -> None:
    put(table, _place(table, rng).path, strange(rng))


def strange_text(table: dict[str, Any], rng: random.Random) -> None:
    put(table, _place(table, rng).path, rng.choice(TEXTS))


def strange_anywhere(table: dict[str, Any], rng: random.Random) -> None:
    here, step = rng.choice(held(table) or [(table, "x")])
    here[step] = strange(rng)


def strange_item(table: dict[str, Any], rng: random.Random) -> None:
    lists = [here[step] for here, step in held(table) if isinstance(here[step], list)]
    if lists:
        rng.choice(lists).append(strange(rng))


def misspelt_key(table: dict[str, Any], rng: random.Random) -> None:
    tables = [(here, step) for here, step in held(table) if isinstance(here, dict)]
    if tables:
        here, key = rng.choice(tables)
        here[misspelt(key, rng)] = here.pop(key)


def misspelt_word(table: dict[str, Any], rng: random.Random) -> None:
    words = [(here, step) for here, step in held(table) if isinstance(here[step], str)]
    if words:
        here, step = rng.choice(words)
        here[step] = misspelt(here[step], rng)


def unknown_key(table: dict[str, Any], rng: random.Random) -> None:
    tables = [table, *(here[step] for here, step in held(table) if isinstance(here[step], dict))]
    here = rng.choice(tables)
    here.setdefault(rng.choice(KEYS), strange(rng))


def missing_key(table: dict[str, Any], rng: random.Random) -> None:
    here, step = rng.choice(held(table) or [({0: 0}, 0)])
    del here[step]


def swapped(table: dict[str, Any], rng: random.Random) -> None:
    """Two sections, or any two values."""
    there = held(table) if rng.random() < 0.6 else [(table, key) for key in table]
    if len(there) > 1:
        (one, first), (other, second) = rng.sample(there, 2)
        one[first], other[second] = copy.deepcopy(other[second]), copy.deepcopy(one[first])


def moved(table: dict[str, Any], rng: random.Random) -> None:
    """A key from one table to another."""
    there = [(here, step) for here, step in held(table) if isinstance(here, dict)]
    tables = [table, *(here[step] for here, step in held(table) if isinstance(here[step], dict))]
    if there:
        here, key = rng.choice(there)
        value = copy.deepcopy(here.pop(key))
        rng.choice(tables)[key] = value


def doubled(table: dict[str, Any], rng: random.Random) -> None:
    lists = [here[step] for here, step in held(table) if isinstance(here[step], list) and here[step]]
    if lists:
        chosen = rng.choice(lists)
        chosen += copy.deepcopy(chosen) * (rng.choice((1, 1, 2, 40)) if len(chosen) < 100 else 1)


def wrapped(table: dict[str, Any], rng: random.Random) -> None:
    """A value put in a list or a table, or taken out of one."""
    here, step = rng.choice(held(table) or [({0: 0}, 0)])
    value = here[step]
    if isinstance(value, list) and value and rng.random() < 0.6:
        here[step] = value[0]
    elif isinstance(value, dict) and value and rng.random() < 0.3:
        here[step] = next(iter(value.values()))
    else:
        here[step] = [value] if rng.random() < 0.5 else {rng.choice(("name", "kind", "value")): value}


def deep(table: dict[str, Any], rng: random.Random) -> None:
    put(table, _place(table, rng).path, nested(rng))


def long_list(table: dict[str, Any], rng: random.Random) -> None:
    put(table, _place(table, rng).path, huge(rng))


CHANGES: dict[str, tuple[Change, int]] = {
    "another value": (another_value, 10),
    "strange value": (strange_value, 6),
    "strange text": (strange_text, 4),
    "strange anywhere": (strange_anywhere, 2),
    "strange item of a list": (strange_item, 2),
    "misspelt key": (misspelt_key, 3),
    "misspelt word": (misspelt_word, 3),
    "unknown key": (unknown_key, 2),
    "missing key": (missing_key, 3),
    "values swapped": (swapped, 2),
    "key moved": (moved, 2),
    "list doubled": (doubled, 2),
    "value wrapped": (wrapped, 2),
    "nested deeply": (deep, 1),
    "huge list": (long_list, 1),
}
"""Every way, and how often it is taken."""


def _setting(table: dict[str, Any], rng: random.Random) -> str:
    """What somebody might type behind `--set`."""
    place = _place(table, rng)
    key = ".".join(map(str, place.path))
    if rng.random() < 0.1:
        key = rng.choice((misspelt(key, rng), key + ".x", key + ".0", ".", "", "a..b", key.replace(".", "[", 1), "é"))
    way = rng.random()
    if way < 0.5:
        value = _typed(value_for(place.annotation, rng))
    elif way < 0.8:
        value = _typed(strange(rng))
    else:
        value = rng.choice(TEXTS)
    return key + rng.choice(("=", "=", "=", "=", "=", " = ", "", "==")) + value


def _typed(value: Any) -> str:
    """The value as TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_typed(key)} = {_typed(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_typed, value)) + "]"
    return tomli_w.dumps({"x": value}).partition(" = ")[2].rstrip("\n")
