"""Read an experiment file: TOML in, a validated `Experiment` out, or every mistake at once with file, line and key."""

from __future__ import annotations

import difflib
import itertools
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path as FilePath
from typing import Any

import tomli_w

from fedsim import plugins, threat_models
from fedsim.errors import InputError, SettingError, suggestion
from fedsim.experiment import (
    OFF,
    AdversaryEntry,
    Clients,
    Component,
    Data,
    Experiment,
    Group,
    LocalTraining,
    Logging,
    Runtime,
    Scores,
    Server,
)
from fedsim.experiment_checks import check
from fedsim.schema import Problems, dotted, fill
from fedsim.toml_lines import Path, locate

MOST_BYTES = 16 << 20
"""Of an experiment file, a list of all of a million clients in it; what is larger is another kind of file."""

MOST_ROUNDS = 1_000_000
"""As many as `rounds = "all"` writes out; beyond that, whoever asks for it is told what a list looks like."""

Rule = Callable[[Experiment, Problems], None]
"""Notes in the problems whatever an experiment does not fulfil."""


def shipped() -> list[str]:
    """The names of the experiments that come with the package."""
    folder = resources.files("fedsim.experiments")
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read(file_or_name: str, settings: Sequence[str] = (), rules: Sequence[Rule] = ()) -> Experiment:
    """The experiment in a file, or the one of that name that ships with the package.

    settings: `key=value` overrides; a key is dotted (`clients.count`, `adversaries.0.rounds`), a value is TOML, or text
    where it is not valid TOML.
    rules: what must hold besides, known to the caller alone (such as the threat model's grants).
    Raises InputError, with one line for each problem found.
    """
    text, source, stem = file_text(file_or_name)
    table = parsed(text, source)
    overrides = {}
    for setting in settings:
        path, value = parse_setting(setting)
        override(table, path, value, setting)
        overrides[path] = setting
    return validate(table, Problems(source, locate(text), overrides), stem, rules)


def from_table(table: Mapping[str, Any], source: str = "experiment", rules: Sequence[Rule] = ()) -> Experiment:
    """The same for data that are already parsed: for programs and tests."""
    return validate(dict(table), Problems(source, {}, {}), source, rules)


def validate(table: dict[str, Any], problems: Problems, name: str, rules: Sequence[Rule]) -> Experiment:
    """Check a parsed file whole: sections, components and what must hold between them."""
    if isinstance(table.get("data"), str):
        table["data"] = {"name": table["data"]}
    for section in ("data", "clients", "server", "scores", "runtime", "logging"):
        if not isinstance(table.get(section, {}), dict):
            problems.add((section,), f"must be a table, as in [{section}]")
            table[section] = {}
    clients = _clients(table.get("clients", {}), problems)
    algorithm = clients.algorithm if clients else "fedavg"
    ready = {
        "data": _data(table.get("data"), problems),
        "model": _component("models", table.get("model"), ("model",), problems),
        "clients": clients,
        "server": _server(table.get("server", {}), algorithm, problems),
        "adversaries": _adversaries(table.get("adversaries", []), table.get("rounds"), clients, problems),
        "scores": fill(Scores, table.get("scores", {}), ("scores",), problems),
        "runtime": fill(Runtime, table.get("runtime", {}), ("runtime",), problems),
        "logging": _logging(table.get("logging", {}), problems),
    }
    table = {"name": name, "seed": 0, **table}
    experiment = fill(Experiment, table, (), problems, ready=ready)
    if not problems.found:  # conflicts can only be told between sections that are whole
        check(experiment, problems)
    if not problems.found:
        for rule in rules:
            rule(experiment, problems)
    if problems.found:
        raise InputError(*problems.folded())
    assert isinstance(experiment, Experiment)
    return experiment


def as_table(experiment: Experiment) -> dict[str, Any]:
    """The resolved experiment as plain data: every default written out. `from_table` reads it back to an equal one."""
    table = _plain(experiment)
    table["data"] = {**table["data"]["dataset"], "partition": table["data"]["partition"]}
    table["data"]["partition"]["kind"] = table["data"]["partition"].pop("name")
    for entry in table["adversaries"]:
        entry.update(entry.pop("plugin"))
    table["server"].setdefault("secure_aggregation", OFF)
    return table


def as_toml(experiment: Experiment) -> str:
    """`as_table` as TOML text."""
    return tomli_w.dumps(as_table(experiment))


def component(kind: str, name: str, texts: Sequence[str], source: str = "") -> Component:
    """One component from its name and `key=value` settings, outside of any file; `source` is where the name was given.

    Raises InputError.
    """
    settings: dict[str, Any] = {}
    typed: dict[Path, str] = {}
    for text in texts:
        path, value = parse_setting(text)
        override(settings, path, value, text)
        typed[path] = text
    problems = Problems(source or name, None, typed)
    made = _component(kind, {"name": name, **settings}, (), problems)
    if made is None or problems.found:
        raise InputError(*problems.folded())
    return made


def parse_setting(setting: str) -> tuple[Path, Any]:
    """`clients.count=20` -> (("clients", "count"), 20). Raises InputError where there is no key or no `=`."""
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"--set {setting}: not of the form key=value; for example --set clients.count=20")
    if "\n" in setting or "\r" in setting:
        raise InputError(f"--set {setting!r}: has more than one line; give one --set for each key")
    try:
        value = tomllib.loads(f"x = {text.strip()}")["x"]
    except (ValueError, RecursionError):
        value = text.strip()
    return tuple(int(part) if part.isascii() and part.isdecimal() else part for part in parts), value


def file_text(file_or_name: str) -> tuple[str, str, str]:
    """Text, source and name of an experiment file, or of one that ships. Raises InputError where it cannot be read."""
    path = FilePath(file_or_name)
    if not path_exists(path) and path.suffix != ".toml" and "/" not in file_or_name:
        names = shipped()
        if file_or_name in names:
            entry = resources.files("fedsim.experiments") / f"{file_or_name}.toml"
            return entry.read_text(encoding="utf-8"), f"{file_or_name}.toml", file_or_name
        raise InputError(
            f"{_short(file_or_name)}: no such file, and no experiment of that name ships with fedsim"
            f"{suggestion(file_or_name, names)}"
        )
    try:
        return _whole(path), str(path), path.stem
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
        raise InputError(f"{_short(str(path), 200)}: cannot be read: {error.strerror}; check the path") from None
    except ValueError:  # a NUL byte
        raise InputError(f"{file_or_name!r}: not a path") from None


def _whole(path: FilePath) -> str:
    """A file's text. Of one that is far too large, or has no end, no more is read than shows that."""
    with path.open("rb") as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise InputError(f"{path}: has more than {MOST_BYTES} bytes, which no experiment file has; check the path")
    # utf-8-sig: some editors put an invisible mark in front. Lines end as Python's text files have it.
    return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def path_exists(path: FilePath) -> bool:
    """Whether it is there; not so what is no path at all."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a NUL byte
        return False


def parsed(text: str, source: str) -> dict[str, Any]:
    """A TOML text as data. Raises InputError, with the line, where it is none."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(_syntax(source, text, str(error))) from None
    except RecursionError:
        raise InputError(f"{source}: lists or tables are nested too deeply to be an experiment") from None
    except ValueError as error:  # such as a number of thousands of digits
        raise InputError(f"{source}: not valid TOML: {error}") from None


def _syntax(source: str, text: str, error: str) -> str:
    message, _, place = error.rpartition(" (at ")
    lines = text.splitlines() or [""]
    number = re.match(r"line (\d+)", place)
    # The end of the document is after the last line, which is where the reader should look.
    line = min(int(number.group(1)), len(lines)) if number else len(lines)
    if "overwrite a value" in message:
        line = _start_of_pair(lines, line)
    what = (message or error).lower()
    if not number:
        what += "; a bracket or a quote is not closed"
    return f"{source}:{line}: not valid TOML: {_short(what)}: {_short(lines[line - 1].strip())}"


def _start_of_pair(lines: Sequence[str], line: int) -> int:
    """A key that is given twice is noticed at the end of its value; the key stands where the value begins."""
    begins = re.compile(r"\s*([A-Za-z0-9_\"'.\-]+\s*=|\[\[?\s*[A-Za-z_\"'])")
    while line > 1 and not begins.match(lines[line - 1]):
        line -= 1
    return line


def _short(text: str, most: int = 80) -> str:
    """For a message: printable, and no longer than a line."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: most + 1])
    return shown if len(text) <= most else shown[: most - 3] + "..."


def override(table: dict[str, Any], path: Path, value: Any, setting: str) -> None:
    """Change a value in a table, at any depth. setting: how it was typed, for InputError where there is no place."""
    here: Any = table
    for place, (part, follower) in enumerate(itertools.pairwise(path)):
        found = _entry(here, part, setting)
        # `model = "mlp"` is short for a table with a name, and a partition's name is its `kind`.
        if isinstance(found, str) and isinstance(follower, str):
            found = {"kind" if path[: place + 1] == ("data", "partition") else "name": found}
            here[part if isinstance(here, list) else str(part)] = found
        here = found
        if not isinstance(here, dict | list):
            raise InputError(f"--set {setting}: '{dotted(path[: place + 1])}' is not a table or a list in this file")
    last = path[-1]
    if isinstance(here, list):
        _entry(here, last, setting)
        here[last] = value  # type: ignore[index]
    else:
        here[str(last)] = value


def _entry(here: Any, part: str | int, setting: str) -> Any:
    """What stands at one step of an override's path. A table that is not there is made, an entry of a list is not."""
    if isinstance(here, dict):
        return here.setdefault(str(part), {})
    if not isinstance(part, int) or part >= len(here):
        counted = f"has {len(here)} entries, counted from 0" if here else "is empty"
        raise InputError(f"--set {setting}: there is no entry '{part}'; the list {counted}")
    return here[part]


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
    if colon:
        short = _text_setting(cls)
        if short is None:
            problems.add((*path, key), f"'{name}' has no setting that could be given as '{name}:{first}'")
            return None
        if short in table:
            problems.add((*path, short), f"is given twice: '{first}' in the {key}, and here; leave one out")
            return None
        table = {short: first, **table}
    settings = fill(cls, table, path, problems, also_known=(key, *ready))
    if settings is None:
        return None
    if hasattr(settings, "check"):  # such as whether a file is there
        before = len(problems.found)
        try:
            settings.check()
        except SettingError as error:
            problems.add((*path, error.key), error.problem)
        except InputError as error:
            for problem in error.problems:
                problems.add(path, problem)
        except Exception as error:
            problems.add(
                path, f"{plugins.singular(kind)} '{name}' cannot check its settings: {type(error).__name__}: {error}"
            )
        if len(problems.found) > before:
            return None
    return Component(name, settings)


def _text_setting(cls: type) -> str | None:
    """The setting that `name:value` stands for: a component's first one, if it is a text without a default."""
    first = next(iter(fields(cls)), None) if is_dataclass(cls) else None
    return first.name if first is not None and first.default is MISSING and first.type in ("str", str) else None


def _data(raw: Any, problems: Problems) -> Data | None:
    raw = raw or {}
    partition = _component(
        "partitions", raw.get("partition", {"kind": "iid"}), ("data", "partition"), problems, key="kind"
    )
    dataset = _component("datasets", raw, ("data",), problems, ready=("partition",))
    return Data(dataset, partition) if dataset and partition else None


def _defenses(raw: Any, path: Path, problems: Problems) -> tuple[Component, ...]:
    return _several("defenses", raw, path, problems, '[{ name = "gradient_pruning", ratio = 0.9 }]')


def _several(kind: str, raw: Any, path: Path, problems: Problems, example: str) -> tuple[Component, ...]:
    if not isinstance(raw, list):
        problems.add(path, f"must be a list, such as {example}")
        return ()
    made = [_component(kind, item, (*path, i), problems) for i, item in enumerate(raw)]
    return tuple(component for component in made if component)


def _logging(raw: dict[str, Any], problems: Problems) -> Logging | None:
    path: Path = ("logging", "sinks")
    sinks = _several("sinks", raw.get("sinks", []), path, problems, '["tensorboard"]')
    for position, sink in enumerate(sinks):
        if sink.name in [other.name for other in sinks[:position]]:
            problems.add((*path, position), f"'{sink.name}' is named twice; leave one out")
    return fill(Logging, raw, ("logging",), problems, ready={"sinks": sinks})


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
    ready = {"strategy": strategy, "secure_aggregation": _secure(raw.get("secure_aggregation", OFF), problems)}
    return fill(Server, {**defaults, **raw}, ("server",), problems, ready=ready)


def _secure(raw: Any, problems: Problems) -> Component | None:
    path = ("server", "secure_aggregation")
    if raw == OFF or raw == {"name": OFF}:
        return None
    name = raw.get("name") if isinstance(raw, dict) else raw
    known = plugins.names("secure_aggregations")
    if not isinstance(name, str) or name not in known:
        what = f"must be one of {', '.join([OFF, *known])}, or a table with such a name, not {raw!r}"
        problems.add(path, what + (suggestion(name, [OFF, *known]) if isinstance(name, str) else ""))
        return None
    return _component("secure_aggregations", raw, path, problems)


def _adversaries(raw: Any, rounds: Any, clients: Clients | None, problems: Problems) -> tuple[AdversaryEntry, ...]:
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
        if table.get("rounds") == "all" and isinstance(rounds, int) and 0 < rounds <= MOST_ROUNDS:
            table["rounds"] = list(range(1, rounds + 1))
        if table.get("targets") == "all" and clients is not None and clients.count <= MOST_ROUNDS:
            table["targets"] = list(range(clients.count))
        ready: dict[str, Any] = {"plugin": plugin}
        words = [key for key in ("targets", "rounds") if isinstance(table.get(key), str) and table[key] != "all"]
        for key in words:
            problems.add((*path, key), f'must be a list, or "all", not {table[key]!r}')
        if words:
            continue
        if table.get("derive") == OFF:  # so that it can be taken away on the command line
            del table["derive"]
        if "derive" in table:
            ready["derive"] = _component("derivations", table["derive"], (*path, "derive"), problems)
        table = threat_models.expand(table, path, problems)
        made.append(fill(AdversaryEntry, table, path, problems, ready=ready))
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
