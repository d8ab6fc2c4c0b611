"""An experiment in the making: a table that is changed key by key, and that knows where each change was written.

So that a mistake in one of many experiments made from one file is told with the file's line.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedsim.errors import InputError, suggestion
from fedsim.experiment import Experiment
from fedsim.experiment_file import Rule, override, validate
from fedsim.schema import Problems, dotted
from fedsim.toml_lines import Path

_NAME = re.compile(r"\$\w+")


@dataclass(frozen=True)
class Origin:
    """Where a value was written: at a path of the file, or on the command line."""

    path: Path = ()
    setting: str | None = None


@dataclass(frozen=True, order=True)
class Fault:
    """A problem of an experiment: `place: key: problem`, the same for all experiments that share the mistake."""

    place: str
    key: str
    problem: str

    def line(self, whose: str) -> str:
        """For a person; `whose` names the experiments."""
        return f"{self.place}: {self.key + ': ' if self.key else ''}{self.problem}{f' ({whose})' if whose else ''}"


@dataclass
class Draft:
    """The table of one experiment.

    source, lines, files: of the sweep file, as of a `Sweep`. values: what stands for "$NAME". origins: by the path in
    the experiment, in the order of the changes.
    """

    table: dict[str, Any]
    source: str
    lines: Mapping[Path, int]
    values: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)
    origins: list[tuple[Path, Origin]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = self._filled(self.table, ("experiment",))

    def change(self, settings: Mapping[str, Any], at: Path) -> None:
        """Set dotted keys from a table of the file that stands at `at`."""
        for key, value in settings.items():
            self._change(parts(key), self._filled(value, (*at, key)), (*at, key))

    def multiply(self, settings: Mapping[str, Any], at: Path) -> None:
        """Multiply numbers at dotted keys by those of a table of the file that stands at `at`."""
        for key, value in settings.items():
            path, factor = parts(key), self._filled(value, (*at, key))
            number = self._at(path)
            if _is_number(number) and _is_number(factor):
                self._put(path, number * factor, Origin((*at, key)))
            else:
                what = "there is no number to multiply" if not _is_number(number) else f"{factor!r} is no number"
                self.faults.append(Fault(self._spot(Origin((*at, key)), ()), dotted(path), what))

    def command(self, path: Path, value: Any, setting: str) -> None:
        """Set a key from the command line."""
        self._put(path, value, Origin(setting=setting))

    def replace(self, key: str, value: Any, origins: Sequence[tuple[Path, Path]]) -> None:
        """Set a whole section, made from parts of the file: (path in the experiment, path in the file)."""
        self.origins += [(path, Origin(where)) for path, where in origins]
        self.table[key] = self._filled(value, (), key)

    def finish(self, name: str, rules: Sequence[Rule]) -> Experiment | None:
        """The validated experiment, or None where there are faults."""
        if self.faults:
            return None
        problems = _Placed(self)
        try:
            return validate({**copy.deepcopy(self.table), "name": name}, problems, name, rules)
        except InputError as error:
            self.faults += problems.faults or [Fault(self.source, "", line) for line in error.problems]
            return None

    def _filled(self, value: Any, at: Path, key: str = "") -> Any:
        """A copy with each "$NAME" replaced. at: in the file; or else key: in the experiment."""
        if isinstance(value, dict):
            return {name: self._filled(item, (*at, name), key) for name, item in value.items()}
        if isinstance(value, list):
            return [self._filled(item, (*at, place), key) for place, item in enumerate(value)]
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            return value
        if value[1:] not in self.values:
            hint = suggestion(value[1:], self.values) or " (there is no [values])"
            where = self.place((key, *at)) if key else self._spot(Origin(at), ())
            self.faults.append(Fault(where, dotted((key, *at) if key else at), f"there is no value '{value}'{hint}"))
            return value
        return copy.deepcopy(self.values[value[1:]])

    def place(self, path: Path) -> str:
        """Where the value at a path of the experiment was written, or else what it should stand in."""
        words = tuple(map(str, path))
        for changed, origin in reversed(self.origins):
            if words[: len(changed)] == tuple(map(str, changed)):
                return self._spot(origin, path[len(changed) :])
        if ("experiment", *path) not in self.lines:
            for changed, origin in reversed(self.origins):
                if words == tuple(map(str, changed))[: len(words)]:
                    return self._spot(origin, ())
        return self._spot(Origin(("experiment",)), path)

    def _at(self, path: Path) -> Any:
        here: Any = self.table
        for part in path:
            try:
                here = here[part if isinstance(here, list) else str(part)]
            except (KeyError, IndexError, TypeError):
                return None
        return here

    def _spot(self, origin: Origin, below: Path) -> str:
        if origin.setting is not None:
            return f"--set {origin.setting}"
        path = (*origin.path, *below)
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.files.get(path[:end], self.source)}:{self.lines[path[:end]]}"
        return self.source

    def _change(self, path: Path, value: Any, at: Path) -> None:
        # A table that names a component stands for itself; any other one says what to change inside.
        if isinstance(value, dict) and value and not {"name", "kind"} & set(value):
            for key, below in value.items():
                self._change((*path, *parts(key)), below, (*at, key))
            return
        self._put(path, value, Origin(at))

    def _put(self, path: Path, value: Any, origin: Origin) -> None:
        mark = "change"
        try:
            override(self.table, path, copy.deepcopy(value), mark)
        except InputError as error:
            problem = error.problems[0].removeprefix(f"--set {mark}: ")
            self.faults.append(Fault(self._spot(origin, ()), dotted(path), problem))
        self.origins.append((path, origin))


class _Placed(Problems):
    """Problems of a draft's experiment, placed where the draft says."""

    def __init__(self, draft: Draft) -> None:
        super().__init__(draft.source, draft.lines, {})
        self._draft = draft
        self.faults: list[Fault] = []

    def add(self, path: Path, problem: str) -> None:
        super().add(path, problem)
        self.faults.append(Fault(self._draft.place(path), dotted(path), problem))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def parts(key: str) -> Path:
    """`adversaries.0.tv` -> ("adversaries", 0, "tv")."""
    return tuple(int(part) if part.isascii() and part.isdecimal() else part for part in key.split("."))
