"""Fill a frozen dataclass from a table, and say of every key that does not fit where it stands and why.

The rules are the dataclass's own annotations; pydantic checks them. This module words the outcome.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedsim.errors import suggestion
from fedsim.settings import DEVICE_PATTERN, NAME_PATTERN, RAY_PATTERN
from fedsim.toml_lines import Path

PATTERNS = {
    NAME_PATTERN: "must be something that a file can be called: no slash, no line end, no dot in front",
    DEVICE_PATTERN: "must be auto, cpu, cuda, mps, or one GPU of several, as in cuda:0",
    RAY_PATTERN: "must be local, auto, ray://HOST:PORT or HOST:PORT",
}
"""Words for the patterns of settings, which few people read."""


FOLD = 5
"""Problems of one kind that are shown; the others are counted."""


class Problems:
    """Collects what is wrong, each with its place: `file:line: key: problem`. Without `lines` the source has none."""

    def __init__(self, source: str, lines: Mapping[Path, int] | None, overrides: Mapping[Path, str]) -> None:
        self._source, self._lines, self._overrides = source, lines, overrides
        self.found: list[str] = []

    def add(self, path: Path, problem: str) -> None:
        """Note a problem of the key at `path`. A key that is missing gets the line of what should hold it."""
        self.found.append(f"{self._place(path)}: {dotted(path)}: {problem}" if path else f"{self._source}: {problem}")

    def folded(self) -> list[str]:
        """What was found, with only the first few of many problems that differ in nothing but positions in a list."""
        kinds: dict[str, list[str]] = {}
        for problem in self.found:
            kinds.setdefault(re.sub(r"\d+", "#", problem), []).append(problem)
        out = []
        for alike in kinds.values():
            out += alike if len(alike) <= FOLD else alike[:FOLD]
            if len(alike) > FOLD:
                out.append(f"{self._source}: and {len(alike) - FOLD} more like the last one")
        return out

    def _place(self, path: Path) -> str:
        # A table's key may look like a number, which the command line takes for a position.
        words = tuple(map(str, path))
        overrides = {tuple(map(str, override)): setting for override, setting in self._overrides.items()}
        for end in range(len(words), 0, -1):
            if words[:end] in overrides:
                return f"--set {overrides[words[:end]]}"
        for override, setting in overrides.items():
            if words == override[: len(words)] and path not in (self._lines or ()):
                return f"--set {setting}"
        for end in range(len(path), 0, -1):
            if self._lines is not None and path[:end] in self._lines:
                return f"{self._source}:{self._lines[path[:end]]}"
        return self._source if self._lines is None else f"{self._source}:1"


def dotted(path: Path) -> str:
    """`clients.groups[0].members`, for a person. A key of blanks, or with some around it, is in quotes."""
    out = ""
    for part in path:
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            word = part if part == part.strip() != "" else f"'{part}'"
            out += f".{word}" if out else word
    return out


@functools.cache
def _adapter(cls: type, key: str) -> TypeAdapter[Any]:
    # NaN and infinity are TOML numbers, but no setting means anything by them.
    return TypeAdapter(get_type_hints(cls, include_extras=True)[key], config=ConfigDict(allow_inf_nan=False))


def fill(
    cls: type,
    table: Mapping[str, Any],
    path: Path,
    problems: Problems,
    *,
    ready: Mapping[str, Any] | None = None,
    also_known: tuple[str, ...] = (),
) -> Any:
    """An instance of `cls` from `table`, or None after noting problems.

    `ready` holds fields that the caller has made already (nested components); `also_known` names keys of the table that
    are none of this class's business but are no mistakes either.
    """
    if not is_dataclass(cls):
        problems.add(path, f"the plugin's class {cls.__qualname__} is not a dataclass; its settings are its fields")
        return None
    before = len(problems.found)
    values = dict(ready or {})
    known = [f.name for f in fields(cls) if f.init]
    for key, value in table.items():
        if key in values or key in also_known:
            continue
        if key not in known:
            candidates = [*known, *also_known]
            problems.add((*path, key), f"unknown key{suggestion(key, candidates)}")
            continue
        try:
            adapter = _adapter(cls, key)
            # JSON in strict mode takes a list for a tuple and a whole number for a float, but no text for a number.
            values[key] = adapter.validate_json(json.dumps(value, default=_no_json), strict=True)
            _refuse_lookalikes(adapter, value, values[key])
        except _Lookalike as error:
            problems.add((*path, key), str(error))
        except ValidationError as error:
            for item in error.errors(include_url=False):
                inner = tuple(part for part in item["loc"] if isinstance(part, int) or part in known)
                problems.add((*path, key, *inner), _words(item))
    for f in fields(cls):
        required = f.default is MISSING and f.default_factory is MISSING
        if f.init and required and f.name not in values and f.name not in table:
            problems.add((*path, f.name), "missing, and there is no default")
    if len(problems.found) > before:
        return None
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:  # a component's own __post_init__
        problems.add(path, str(error))
        return None


class _Lookalike(ValueError):
    pass


def _no_json(value: Any) -> Any:
    # TOML has dates and times. No setting is one, and an object is what no setting accepts.
    return {"date or time": str(value)}


def _refuse_lookalikes(adapter: TypeAdapter[Any], given: Any, taken: Any) -> None:
    """A choice of numbers is compared by value, and in Python True == 1 == 1.0; true in a file means no number."""
    if isinstance(given, bool | float) and isinstance(taken, int) and type(given) is not type(taken):
        choices = adapter.json_schema().get("enum", [])
        raise _Lookalike(f"must be one of {' or '.join(map(str, choices))}, not {_shown(given)}")


def _words(item: Any) -> str:
    kind, given, limits = item["type"], item["input"], item.get("ctx", {})
    wanted = {
        "greater_than_equal": f"must be at least {limits.get('ge')}",
        "greater_than": f"must be above {limits.get('gt')}",
        "less_than_equal": f"must be at most {limits.get('le')}",
        "less_than": f"must be below {limits.get('lt')}",
        "int_type": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_type": "must be a number",
        "finite_number": "must be a finite number",
        "string_type": "must be text in quotes",
        "bool_type": "must be true or false",
        "tuple_type": "must be a list",
        "list_type": "must be a list",
        "frozen_set_type": "must be a list",
        "literal_error": f"must be one of {limits.get('expected')}",
        "string_pattern_mismatch": PATTERNS.get(str(limits.get("pattern")), f"must match {limits.get('pattern')}"),
        "string_too_long": f"must have at most {limits.get('max_length')} characters",
        "too_short": f"must have at least {limits.get('min_length')} item(s)",
        "missing": "is missing",
    }.get(kind, item["msg"][:1].lower() + item["msg"][1:])
    words = f"{wanted}, not {_shown(given)}"
    if kind == "literal_error" and isinstance(given, str):
        choices = re.findall(r"'([^']*)'", str(limits["expected"]))
        close = suggestion(given, choices)
        words += close if "did you mean" in close else ""
    return words


def _shown(value: Any) -> str:
    if isinstance(value, str):
        value = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value[:61])
        return f"'{value}'" if len(value) <= 60 else f"'{value[:57]}...'"
    if isinstance(value, dict) and list(value) == ["date or time"]:
        return f"the date or time {value['date or time']}"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
