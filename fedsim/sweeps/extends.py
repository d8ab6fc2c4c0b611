"""A sweep file that extends another one: that one's content with this one's over it, and where each key was written.

Tables are merged key by key; but one that has a `name` or `kind`, which is a component, replaces what was there, and so
does anything that is no table, lists among it. Not taken along are the other sweep's name and title, and its published
values, which are those of its own table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedsim.errors import InputError, suggestion
from fedsim.experiment_file import parsed
from fedsim.schema import Problems
from fedsim.toml_lines import Path, locate

KEY = "extends"
_AT: Path = ("sweep", KEY)
_OWN = ("name", "title", "scale", "settings")
"""Of [sweep], what says which sweep it is."""

Find = Callable[[str, str], "tuple[str, str] | None"]
"""Text and place of the sweep of a name, as a file at a place names it; None if there is none."""


@dataclass(frozen=True)
class Content:
    """A file with what it extends. lines: where each key stands; files: in which file, if not in `source`."""

    table: dict[str, Any]
    source: str
    lines: dict[Path, int]
    files: dict[Path, str] = field(default_factory=dict)


class PlacedProblems(Problems):
    """Problems of a content, with the file that each key stands in."""

    def __init__(
        self,
        source: str,
        lines: Mapping[Path, int],
        files: Mapping[Path, str],
        overrides: Mapping[Path, str] | None = None,
    ) -> None:
        super().__init__(source, lines, overrides or {})
        self._files = files

    def _place(self, path: Path) -> str:
        place = super()._place(path)
        for end in range(len(path), 0, -1):
            if path[:end] in (self._lines or {}):
                file = self._files.get(path[:end])
                return f"{file}{place.removeprefix(self._source)}" if file and place.startswith(self._source) else place
        return place


def content(text: str, source: str, find: Find, shipped: Callable[[], list[str]]) -> Content:
    """A file's whole content. find: looks up what it extends; shipped: names to suggest.

    Raises InputError where a file is no TOML, is not there, or extends itself by way of others.
    """
    return _content(text, source, find, shipped, (source,))


def _content(text: str, source: str, find: Find, shipped: Callable[[], list[str]], before: tuple[str, ...]) -> Content:
    own = Content(parsed(text, source), source, locate(text))
    head = own.table.get("sweep")
    if not isinstance(head, dict) or KEY not in head:
        return own
    name, place = head[KEY], f"{source}:{own.lines[_AT]}: sweep.{KEY}"
    if not isinstance(name, str):
        raise InputError(f"{place}: must be the name of a sweep, or of a file, in quotes, not {name!r}")
    found = find(name, source)
    if found is None:
        raise InputError(f"{place}: there is no sweep '{name}'{suggestion(name, shipped())}")
    if found[1] in before:
        circle = " -> ".join((*before[before.index(found[1]) :], found[1]))
        raise InputError(f"{place}: goes round in a circle: {circle}; leave one of them out")
    base = _content(*found, find, shipped, (*before, found[1]))
    if "sweep" not in base.table:
        raise InputError(f"{place}: '{name}' is no sweep (there is no [sweep] in it)")
    return _over(base, own)


def _over(base: Content, own: Content) -> Content:
    """The own content over the other."""
    table = {key: value for key, value in base.table.items() if key != "published"}
    if isinstance(table["sweep"], dict):
        table["sweep"] = {key: value for key, value in table["sweep"].items() if key not in _OWN}
    replaced: list[Path] = [("published",)]
    merged = _merged(table, own.table, (), replaced)
    merged["sweep"].pop(KEY, None)
    _own_scales(merged, own.table, replaced)
    kept = {path: line for path, line in base.lines.items() if not any(path[: len(at)] == at for at in replaced)}
    files = {path: base.files.get(path, base.source) for path in kept if path not in own.lines}
    return Content(merged, own.source, {**kept, **own.lines}, files)


def _own_scales(merged: dict[str, Any], own: Mapping[str, Any], replaced: list[Path]) -> None:
    """A file that names its own scales does without the other's."""
    named, there = own["sweep"].get("scales"), merged.get("scales")
    if isinstance(named, list) and isinstance(there, dict):
        for scale in [scale for scale in there if scale not in named]:
            del there[scale]
            replaced.append(("scales", scale))


def _merged(base: Mapping[str, Any], own: Mapping[str, Any], at: Path, replaced: list[Path]) -> dict[str, Any]:
    """Notes in `replaced` where nothing is left of the base."""
    out = dict(base)
    for key, value in own.items():
        before = base.get(key)
        here = (*at, key)
        inside = here == ("sweep",) or not (isinstance(value, dict) and {"name", "kind"} & set(value))
        if isinstance(before, dict) and isinstance(value, dict) and inside:
            out[key] = _merged(before, value, here, replaced)
        else:
            out[key] = value
            if key in base:
                replaced.append(here)
    return out
