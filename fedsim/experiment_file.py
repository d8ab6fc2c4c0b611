"""Read an experiment file: TOML in, a validated `Experiment` out, or every mistake at once with file, line and key."""

from __future__ import annotations

import difflib
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from importlib import resources
from pathlib import Path as FilePath
from typing import Any

import tomli_w

from fedsim import plugins
from fedsim.errors import InputError, suggestion
from fedsim.experiment import (
    AdversaryEntry,
    Clients,
    Component,
    Data,
    Experiment,
    Group,
    LocalTraining,
    Runtime,
    Scores,
    Server,
)
from fedsim.experiment_checks import check
from fedsim.schema import Problems, fill
from fedsim.toml_lines import Path, locate

SECTIONS = ("data", "model", "clients", "server", "adversaries", "scores", "runtime")


def shipped() -> list[str]:
    """The names of the experiments that come with the package."""
    folder = resources.files("fedsim.experiments")
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read(file_or_name: str, settings: Sequence[str] = ()) -> Experiment:
    """The experiment in a file, or the one of that name that ships with the package.

    settings: `key=value` overrides; a key is dotted (`clients.count`, `adversaries.0.rounds`), a value is TOML, or text
    where it is not valid TOML.
    Raises InputError, with one line for each problem found.
    """
    text, source, stem = _text(file_or_name)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(_syntax(source, text, error)) from None
    overrides = {}
    for setting in settings:
        path, value = parse_setting(setting)
        _override(table, path, value, setting)
        overrides[path] = setting
    return validate(table, Problems(source, locate(text), overrides), stem)


def from_table(table: Mapping[str, Any], source: str = "experiment") -> Experiment:
    """The same for data that are already parsed: for programs and tests."""
    return validate(dict(table), Problems(source, {}, {}), source)


def validate(table: dict[str, Any], problems: Problems, name: str) -> Experiment:
    """Check a parsed file whole: sections, components and what must hold between them."""
    for section in ("data", "model", "clients", "server", "scores", "runtime"):
        if section != "model" and not isinstance(table.get(section, {}), dict):
            problems.add((section,), f"must be a table, as in [{section}]")
            table[section] = {}
    clients = _clients(table.get("clients", {}), problems)
    algorithm = clients.algorithm if clients else "fedavg"
    ready = {
        "data": _data(table.get("data"), problems),
        "model": _component("models", table.get("model"), ("model",), problems),
        "clients": clients,
        "server": _server(table.get("server", {}), algorithm, problems),
        "adversaries": _adversaries(table.get("adversaries", []), problems),
        "scores": fill(Scores, table.get("scores", {}), ("scores",), problems),
        "runtime": fill(Runtime, table.get("runtime", {}), ("runtime",), problems),
    }
    table = {"name": name, "seed": 0, **table}
    experiment = fill(Experiment, table, (), problems, ready=ready)
    if not problems.found:  # conflicts can only be told between sections that are whole
        check(experiment, problems)
    if problems.found:
        raise InputError(*problems.found)
    assert isinstance(experiment, Experiment)
    return experiment


def as_table(experiment: Experiment) -> dict[str, Any]:
    """The resolved experiment as plain data: every default written out. `from_table` reads it back to an equal one."""
    table = _plain(experiment)
    table["data"] = {**table["data"]["dataset"], "partition": table["data"]["partition"]}
    table["data"]["partition"]["kind"] = table["data"]["partition"].pop("name")
    for entry in table["adversaries"]:
        entry.update(entry.pop("plugin"))
    return table


def as_toml(experiment: Experiment) -> str:
    """`as_table` as TOML text."""
    return tomli_w.dumps(as_table(experiment))


def component(kind: str, name: str, settings: Mapping[str, Any]) -> Component:
    """One component from its name and settings, outside of any file. Raises InputError."""
    problems = Problems(name, {}, {(key,): f"{key}={value}" for key, value in settings.items()})
    made = _component(kind, {"name": name, **settings}, (), problems)
    if made is None or problems.found:
        raise InputError(*problems.found)
    return made


def parse_setting(setting: str) -> tuple[Path, Any]:
    """`clients.count=20` -> (("clients", "count"), 20). Raises InputError where there is no key or no `=`."""
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"--set {setting}: not of the form key=value; for example --set clients.count=20")
    try:
        value = tomllib.loads(f"x = {text.strip()}")["x"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    return tuple(int(part) if part.isdigit() else part for part in parts), value


def _text(file_or_name: str) -> tuple[str, str, str]:
    path = FilePath(file_or_name)
    if not path.exists() and path.suffix != ".toml" and "/" not in file_or_name:
        names = shipped()
        if file_or_name in names:
            entry = resources.files("fedsim.experiments") / f"{file_or_name}.toml"
            return entry.read_text(encoding="utf-8"), f"{file_or_name}.toml", file_or_name
        raise InputError(
            f"{file_or_name}: no such file, and no experiment of that name ships with fedsim"
            f"{suggestion(file_or_name, names)}"
        )
    try:
        return path.read_text(encoding="utf-8"), str(path), path.stem
    except FileNotFoundError:
        near = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, near, n=1)
        hint = f"; did you mean '{path.parent / close[0]}'?" if close else "; check the path"
        raise InputError(f"{path}: no such file{hint}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give the experiment file in it") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; check its permissions") from None


def _syntax(source: str, text: str, error: tomllib.TOMLDecodeError) -> str:
    message, _, place = str(error).rpartition(" (at ")
    words = place.rstrip(")").replace("line ", "").split(",")[0]
    line = words if words.isdigit() else str(text.count("\n") + 1)
    shown = text.splitlines()[int(line) - 1].strip() if int(line) <= len(text.splitlines()) else ""
    return f"{source}:{line}: not valid TOML: {(message or str(error)).lower()}" + (f": {shown}" if shown else "")


def _override(table: dict[str, Any], path: Path, value: Any, setting: str) -> None:
    here: Any = table
    for part, follower in itertools.pairwise(path):
        if isinstance(here, list):
            here = here[part] if isinstance(part, int) and part < len(here) else None
        elif isinstance(here, dict):
            # `model = "mlp"` is short for a table with a name.
            if isinstance(here.get(str(part)), str) and isinstance(follower, str):
                here[str(part)] = {"name": here[str(part)]}
            here = here.setdefault(str(part), {})
        if not isinstance(here, dict | list):
            raise InputError(f"--set {setting}: '{part}' is not a table or an entry that the file has")
    last = path[-1]
    if isinstance(here, list):
        if not isinstance(last, int) or last >= len(here):
            raise InputError(f"--set {setting}: the list has {len(here)} entries, counted from 0")
        here[last] = value
    else:
        here[str(last)] = value


def _component(
    kind: str, raw: Any, path: Path, problems: Problems, *, key: str = "name", ready: Sequence[str] = ()
) -> Component | None:
    """`"fedavg"` or `{ name = "fedadam", eta = 0.1 }`. `name:value` gives the plugin's first setting its value."""
    if isinstance(raw, str):
        raw = {key: raw}
    if raw is None:
        problems.add(path, f"missing; name one of {', '.join(plugins.names(kind))}")
        return None
    if not isinstance(raw, dict):
        problems.add(path, f"must be a name or a table with a {key}, not {raw!r}")
        return None
    name = raw.get(key)
    if not isinstance(name, str):
        problem = "missing" if name is None else f"must be text in quotes, not {name!r}"
        problems.add((*path, key), f"{problem}; known: {', '.join(plugins.names(kind))}")
        return None
    name, colon, first = name.partition(":")
    try:
        cls = plugins.load(kind, name)
    except InputError as error:
        problems.add((*path, key), str(error))
        return None
    table = {k: v for k, v in raw.items() if k != key and k not in ready}
    if colon and is_dataclass(cls) and fields(cls):
        table = {fields(cls)[0].name: first, **table}
    settings = fill(cls, table, path, problems, also_known=(key, *ready))
    if settings is None:
        return None
    if hasattr(settings, "check"):  # such as whether a file is there
        try:
            settings.check()
        except InputError as error:
            for problem in error.problems:
                problems.add(path, problem)
    return Component(name, settings)


def _data(raw: Any, problems: Problems) -> Data | None:
    if raw is None or isinstance(raw, str):
        raw = {} if raw is None else {"name": raw}
    partition = _component(
        "partitions", raw.get("partition", {"kind": "iid"}), ("data", "partition"), problems, key="kind"
    )
    dataset = _component("datasets", raw, ("data",), problems, ready=("partition",))
    return Data(dataset, partition) if dataset and partition else None


def _defenses(raw: Any, path: Path, problems: Problems) -> tuple[Component, ...]:
    if not isinstance(raw, list):
        problems.add(path, 'must be a list, such as [{ name = "gradient_pruning", ratio = 0.9 }]')
        return ()
    made = [_component("defenses", item, (*path, i), problems) for i, item in enumerate(raw)]
    return tuple(component for component in made if component)


def _clients(raw: dict[str, Any], problems: Problems) -> Clients | None:
    ready: dict[str, Any] = {"defenses": _defenses(raw.get("defenses", []), ("clients", "defenses"), problems)}
    alone = fill(Clients, {k: v for k, v in raw.items() if k != "groups"}, ("clients",), problems, ready=ready)
    groups = raw.get("groups", [])
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        problems.add(("clients", "groups"), "must be tables, as in [[clients.groups]]")
        return None
    inherited = {f.name: getattr(alone or LocalTraining(), f.name) for f in fields(LocalTraining)}
    made = []
    for position, group in enumerate(groups):
        path: Path = ("clients", "groups", position)
        if "members" not in group:
            problems.add((*path, "members"), "missing; say which clients, as in members = [1, 2]")
        own = {key: value for key, value in inherited.items() if key not in group}
        if "defenses" in group:
            own["defenses"] = _defenses(group["defenses"], (*path, "defenses"), problems)
        made.append(fill(Group, group, path, problems, ready=own))
    return replace(alone, groups=tuple(group for group in made if group)) if alone else None


def _server(raw: dict[str, Any], algorithm: str, problems: Problems) -> Server | None:
    strategy = _component("strategies", raw.get("strategy", "fedavg"), ("server", "strategy"), problems)
    defaults = {"learning_rate": 0.1 if algorithm == "fedsgd" else 1.0}
    return fill(Server, {**defaults, **raw}, ("server",), problems, ready={"strategy": strategy})


def _adversaries(raw: Any, problems: Problems) -> tuple[AdversaryEntry, ...]:
    if not isinstance(raw, list) or not all(isinstance(item, dict) for item in raw):
        problems.add(("adversaries",), "must be tables, as in [[adversaries]]")
        return ()
    own = tuple(f.name for f in fields(AdversaryEntry) if f.name != "plugin")
    made = []
    for position, item in enumerate(raw):
        path: Path = ("adversaries", position)
        plugin = _component("adversaries", item, path, problems, ready=own)
        if plugin is None:
            continue
        table = {"id": plugin.name, **{key: value for key, value in item.items() if key in own}}
        made.append(fill(AdversaryEntry, table, path, problems, ready={"plugin": plugin}))
    return tuple(entry for entry in made if entry)


def _plain(value: Any) -> Any:
    """Dataclasses and tuples as tables and lists; what is None is left out, as TOML has no word for it."""
    if isinstance(value, Component):
        value = value.describe()
    elif is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, tuple | list | frozenset):
        return [_plain(item) for item in value]
    return value
