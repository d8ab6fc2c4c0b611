"""Read a sweep file: TOML in, a `Sweep` out, or every mistake at once with file, line and key.

What the experiments of its cells have to say for themselves is checked by `cells`, once the grid is made.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path as FilePath
from typing import Any

from fedsim.errors import InputError, suggestion
from fedsim.experiment_file import file_text, override, parse_setting, parsed, path_exists
from fedsim.schema import Problems, fill
from fedsim.settings import Name
from fedsim.sweeps.checks import check
from fedsim.sweeps.extends import KEY, Content, PlacedProblems, content
from fedsim.sweeps.words import (
    Attacker,
    Axis,
    Chart,
    Costs,
    Labels,
    Part,
    Point,
    Protocol,
    Scale,
    Sweep,
    TableSpec,
    TrainingSpec,
)
from fedsim.toml_lines import Path

_SHIPPED = re.compile(r"[\w-]{1,80}(/[\w-]{1,80}){0,3}")
_OF_PARTS = {"costs": Costs, "labels": Labels}
"""Sections of parts of the page that are not made of cells."""
_EXAMPLES = {"costs": "costs.hours=0.5", "labels": "labels.draws=100"}
_TABLES = (
    *("sweep", "values", "experiment", "training", "templates", "scales", "table", "chart", "published"),
    *_OF_PARTS,
)
_SECTIONS = (*_TABLES, "axes")


@dataclass(frozen=True)
class _Head:
    """`[sweep]`, without the names of the scales, which have tables of their own."""

    name: str | None = None
    title: str | None = None
    show: tuple[Part, ...] = ("table",)
    scales: tuple[Name, ...] = ()
    scale: str | None = None
    settings: tuple[str, ...] = ()


def shipped() -> list[str]:
    """The names of the sweeps that come with the package."""
    return sorted(name for name, text in _files(resources.files("fedsim.experiments"), "") if _has_sweep(text))


def is_sweep(file_or_name: str) -> bool:
    """Whether a command line's FILE|NAME is a sweep. What cannot be read is none: its reader says what is wrong."""
    found = _found(file_or_name)
    return found is not None and _has_sweep(found[0])


def refuse(file_or_name: str, command: str) -> None:
    """InputError if it is a sweep, for a command that takes experiments alone."""
    if is_sweep(file_or_name):
        raise InputError(f"{file_or_name}: is a sweep, not an experiment; use `fedsim {command} {file_or_name}`")


def read(file_or_name: str) -> Sweep:
    """The sweep in a file, or the one of that name that ships with the package.

    Raises InputError, with one line for each problem found.
    """
    found = _found(file_or_name)
    if found is None and not path_exists(FilePath(file_or_name)) and not file_or_name.endswith(".toml"):
        hint = suggestion(file_or_name, shipped()) or "; give the path of a sweep file"
        raise InputError(f"{file_or_name[:80]}: no such file, and no sweep of that name ships with fedsim{hint}")
    text, source, name = found or file_text(file_or_name)
    if "sweep" not in parsed(text, source):
        raise InputError(
            f"{file_or_name}: is no sweep (there is no [sweep] in it); "
            f"for an experiment use `fedsim run {file_or_name}`"
        )
    return parse(text, source, name)


def parse(text: str, source: str, name: str) -> Sweep:
    """The same for a text that is at hand."""
    whole = content(text, source, _extended, shipped)
    table = whole.table
    problems = PlacedProblems(source, whole.lines, whole.files)
    for key in table:
        if key not in _SECTIONS:
            problems.add((key,), f"unknown section{suggestion(key, _SECTIONS)}")
    for key in _TABLES:
        if not isinstance(table.get(key, {}), dict):
            problems.add((key,), f"must be a table, as in [{key}]")
            table[key] = {}
    head = fill(_Head, table.get("sweep", {}), ("sweep",), problems, also_known=(KEY,)) or _Head()
    axes = _axes(table.get("axes", []), problems)
    sweep = Sweep(
        name=head.name or name,
        title=head.title or _comment(text) or head.name or name,
        show=head.show,
        scales=_scales(table.get("scales", {}), head.scales, problems),
        experiment=table.get("experiment"),
        training=_section(TrainingSpec, "training", table, problems),
        templates=_templates(table.get("templates", {}), problems),
        values=table.get("values", {}),
        axes=axes,
        table=_table(table, problems),
        chart=_section(Chart, "chart", table, problems),
        costs=_of_part("costs", head, whole, problems),
        labels=_of_part("labels", head, whole, problems),
        published=table.get("published", {}),
        scale=head.scale,
        settings=head.settings,
        source=source,
        lines=whole.lines,
        content=table,
        files=whole.files,
    )
    for place, setting in enumerate(head.settings):
        try:
            parse_setting(setting)
        except InputError as error:
            problems.add(("sweep", "settings", place), str(error).removeprefix("--set "))
    if not problems.found:  # what names what can only be told between sections that are whole
        check(sweep, problems)
    if problems.found:
        raise InputError(*problems.folded())
    return sweep


def with_settings(sweep: Sweep, settings: Sequence[str]) -> Sweep:
    """The sweep with those of the command line's settings that are of its parts: `costs.KEY=...`, `labels.KEY=...`.

    Raises InputError, also where the sweep has no such part.
    """
    for part, cls in _OF_PARTS.items():
        typed = {path: (value, text) for text in settings for path, value in [parse_setting(text)] if path[0] == part}
        if not typed:
            continue
        table: dict[str, Any] = {part: copy.deepcopy(sweep.content.get(part, {}))}
        for path, (value, text) in typed.items():
            if part not in sweep.show:
                raise InputError(f"--set {text}: this sweep shows no {part}")
            if len(path) == 1:
                raise InputError(f"--set {text}: name a key of it, as in --set {_EXAMPLES[part]}")
            override(table, path, value, text)
        overrides = {path: text for path, (_, text) in typed.items()}
        problems = PlacedProblems(sweep.source, sweep.lines, sweep.files, overrides)
        spec = fill(cls, table[part], (part,), problems)
        if problems.found:
            raise InputError(*problems.folded())
        sweep = replace(sweep, **{part: spec})
    return sweep


def is_of_part(setting: str) -> bool:
    """Whether a `key=value` of the command line is of a part of the page that is not made of cells."""
    return parse_setting(setting)[0][0] in _OF_PARTS


def _extended(name: str, source: str) -> tuple[str, str] | None:
    """What a sweep extends: a file beside its own, or one that ships."""
    if path_exists(FilePath(source)):
        beside = FilePath(source).parent / name
        for path in (beside, beside.with_name(f"{beside.name}.toml")):
            if path_exists(path) and path.is_file():
                return file_text(str(path))[:2]
    entry = _entry(name)
    return entry[:2] if entry else None


def _files(folder: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for entry in folder.iterdir():
        if entry.is_dir() and _SHIPPED.fullmatch(entry.name):
            yield from _files(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".toml"):
            yield prefix + entry.name[:-5], entry.read_text(encoding="utf-8")


def _found(file_or_name: str) -> tuple[str, str, str] | None:
    """Text, source and name of what can be read; a file on disk goes before one that ships, as with experiments."""
    path = FilePath(file_or_name)
    if path_exists(path):
        try:
            return file_text(file_or_name) if path.is_file() else None
        except InputError:
            return None
    return _entry(file_or_name)


def _entry(name: str) -> tuple[str, str, str] | None:
    """Text, source and name of a file that ships."""
    if not _SHIPPED.fullmatch(name):
        return None
    entry = resources.files("fedsim.experiments").joinpath(*f"{name}.toml".split("/"))
    return (entry.read_text(encoding="utf-8"), f"{name}.toml", name) if entry.is_file() else None


def _has_sweep(text: str) -> bool:
    try:
        return "sweep" in tomllib.loads(text)
    except (ValueError, RecursionError):
        return False


def _comment(text: str) -> str:
    first = next(iter(text.lstrip().splitlines()), "")
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _section(cls: type, key: str, table: Mapping[str, Any], problems: Problems) -> Any:
    return fill(cls, table[key], (key,), problems) if key in table else None


def _of_part(part: str, head: _Head, whole: Content, problems: Problems) -> Any:
    """The section of a part that the page has; the defaults where the file has no such section."""
    if part in head.show:
        return fill(_OF_PARTS[part], whole.table.get(part, {}), (part,), problems)
    if part in whole.table and (part,) not in whole.files:  # what another file says may well be of no use here
        problems.add((part,), f"the page does not show it; add '{part}' to sweep.show, or leave it out")
    return None


def _axes(raw: Any, problems: Problems) -> tuple[Axis, ...]:
    if not _are_tables(raw):
        problems.add(("axes",), "must be tables, as in [[axes]]")
        return ()
    made = []
    for position, item in enumerate(raw):
        path: Path = ("axes", position)
        points = item.get("points", [])
        if not _are_tables(points) or not points:
            problems.add((*path, "points"), "must be tables, at least one, as in [[axes.points]]")
            points = []
        ready = [fill(Point, point, (*path, "points", place), problems) for place, point in enumerate(points)]
        made.append(fill(Axis, item, path, problems, ready={"points": tuple(point for point in ready if point)}))
    return tuple(axis for axis in made if axis)


def _are_tables(raw: Any) -> bool:
    return isinstance(raw, list) and all(isinstance(item, dict) for item in raw)


def _scales(raw: Mapping[str, Any], names: tuple[str, ...], problems: Problems) -> dict[str, Scale]:
    for place, name in enumerate(names):
        if name not in raw:
            problems.add(("sweep", "scales", place), f"there is no [scales.{name}]{suggestion(name, raw)}")
        if name in names[:place]:
            problems.add(("sweep", "scales", place), f"'{name}' is there twice; leave one out")
    for name in raw:
        if names and name not in names:
            problems.add(
                ("scales", name), f"is not among sweep.scales; add it there, or leave it out ({', '.join(names)})"
            )
    ordered = [name for name in names if name in raw] if names else list(raw)
    made = {}
    for name in dict.fromkeys(ordered):
        if not isinstance(raw[name], dict):
            problems.add(("scales", name), f"must be a table, as in [scales.{name}]")
            continue
        scale = fill(Scale, raw[name], ("scales", name), problems)
        if scale is not None:
            made[name] = scale
    return made


def _templates(raw: Mapping[str, Any], problems: Problems) -> dict[str, Mapping[str, Any]]:
    for name, item in raw.items():
        if not isinstance(item, dict):
            problems.add(("templates", name), f"must be a table, as in [templates.{name}]")
        elif not isinstance(item.get("label", ""), str):
            problems.add(("templates", name, "label"), f"must be text in quotes, not {item['label']!r}")
    return {name: item for name, item in raw.items() if isinstance(item, dict)}


def _table(whole: Mapping[str, Any], problems: Problems) -> TableSpec | None:
    if "table" not in whole:
        return None
    raw = whole["table"]
    ready: dict[str, Any] = {}
    for key, cls in {"attackers": Attacker, "protocols": Protocol}.items():
        entries = raw.get(key, [])
        if not _are_tables(entries):
            problems.add(("table", key), f"must be tables, as in [[table.{key}]]")
            entries = []
        made = [fill(cls, one, ("table", key, place), problems) for place, one in enumerate(entries)]
        ready[key] = tuple(one for one in made if one)
    found: TableSpec | None = fill(TableSpec, raw, ("table",), problems, ready=ready)
    return found
