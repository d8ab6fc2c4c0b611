"""Every place of an experiment's table where a value may stand, by the dataclasses that it is read into.

No test is in here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from fedsim import plugins
from fedsim.errors import InputError
from fedsim.experiment import AdversaryEntry, Clients, Component, Experiment, Group, Runtime, Scores, Server
from fedsim.sweeps import file as sweeps
from fedsim.sweeps.words import Axis, Chart, Costs, Labels, Point, Scale, TableSpec

Step = str | int


@dataclass(frozen=True)
class Named:
    """In the place of an annotation: a component of this kind, under its name (`key`) or as a table with one."""

    kind: str
    key: str = "name"


@dataclass(frozen=True)
class Several:
    """In the place of an annotation: a list of components of this kind."""

    kind: str


@dataclass(frozen=True)
class Place:
    """path: of the key. annotation: what is to stand there."""

    path: tuple[Step, ...]
    annotation: Any


LISTS = {"defenses": Several("defenses"), "sinks": Several("sinks")}
SINGLE = {
    "strategy": Named("strategies"),
    "secure_aggregation": Named("secure_aggregations"),
    "derive": Named("derivations"),
    "partition": Named("partitions", "kind"),
}


def places(table: Mapping[str, Any]) -> list[Place]:
    """All of them, of keys that the table has and of keys that it leaves to their defaults."""
    return list(_all(table))


def _all(table: Mapping[str, Any]) -> Iterator[Place]:
    if "sweep" in table:
        yield from _of_sweep(table)
        return
    yield from _fields(Experiment, ())
    for section, cls in (("clients", Clients), ("server", Server), ("scores", Scores), ("runtime", Runtime)):
        yield from _fields(cls, (section,))
    yield Place(("logging", "sinks"), LISTS["sinks"])
    yield from _component("datasets", table.get("data"), ("data",))
    yield from _component("models", table.get("model"), ("model",))
    yield Place(("data", "partition"), SINGLE["partition"])
    yield from _inside(table.get("data"), ("data",))
    yield from _inside(table.get("server"), ("server",))
    yield from _inside(table.get("clients"), ("clients",))
    for name, cls in (("groups", Group), ("adversaries", AdversaryEntry)):
        path: tuple[Step, ...] = ("clients", name) if cls is Group else (name,)
        for place, entry in enumerate(_list(_at(table, path))):
            here = (*path, place)
            yield from _fields(cls, here)
            yield from _inside(entry, here)
            if cls is AdversaryEntry:
                yield Place((*here, "name"), Named("adversaries"))
                yield from _settings("adversaries", entry, here, "name")


def _of_sweep(table: Mapping[str, Any]) -> Iterator[Place]:
    yield from (Place(("sweep", name), hint) for name, hint in _hints(sweeps._Head).items())
    for section in ("experiment", "training"):
        inside = table.get(section)
        for place in _all(inside) if isinstance(inside, dict) and "sweep" not in inside else ():
            yield Place((section, *place.path), place.annotation)
    for section, cls in (("table", TableSpec), ("chart", Chart), ("costs", Costs), ("labels", Labels)):
        yield from _fields(cls, (section,))
    scales = table.get("scales")
    for name in scales if isinstance(scales, dict) else ():
        yield from _fields(Scale, ("scales", name))
    for place, axis in enumerate(_list(table.get("axes"))):
        yield from _fields(Axis, ("axes", place))
        for point, _ in enumerate(_list(_at(axis, ("points",)))):
            yield from _fields(Point, ("axes", place, "points", point))


def _fields(cls: type, path: tuple[Step, ...]) -> Iterator[Place]:
    """Those of one section."""
    for name, annotation in _hints(cls).items():
        if name == "plugin" or is_dataclass(annotation):
            continue
        yield Place((*path, name), LISTS.get(name, SINGLE.get(name, annotation)))


def _inside(section: Any, path: tuple[Step, ...]) -> Iterator[Place]:
    """Those of the components that a section holds."""
    if not isinstance(section, dict):
        return
    for key, named in SINGLE.items():
        if key in section:
            yield from _settings(named.kind, section[key], (*path, key), named.key)
    for key, several in LISTS.items():
        for place, entry in enumerate(_list(section.get(key))):
            yield from _component(several.kind, entry, (*path, key, place))


def _component(kind: str, table: Any, path: tuple[Step, ...]) -> Iterator[Place]:
    yield Place((*path, "name"), Named(kind))
    yield from _settings(kind, table, path, "name")


def _settings(kind: str, table: Any, path: tuple[Step, ...], key: str) -> Iterator[Place]:
    name = table.get(key) if isinstance(table, dict) else table
    if isinstance(name, str):
        for field, annotation in _plugin(kind, name.partition(":")[0]).items():
            yield Place((*path, field), annotation)


@functools.cache
def _plugin(kind: str, name: str) -> Mapping[str, Any]:
    try:
        cls = plugins.load(kind, name)
    except InputError:
        return {}
    return _hints(cls)


@functools.cache
def _hints(cls: type) -> Mapping[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    components = {name for name, annotation in hints.items() if annotation is Component and name not in SINGLE}
    return {field.name: hints[field.name] for field in fields(cls) if field.init and field.name not in components}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _at(table: Any, path: tuple[Step, ...]) -> Any:
    here: Any = table
    for step in path:
        here = here.get(step) if isinstance(here, Mapping) else None
    return here
