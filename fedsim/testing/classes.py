"""What every plugin is: a documented frozen dataclass of settings, found by name, and imported without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from fedsim.errors import InputError
from fedsim.schema import Problems, fill
from fedsim.testing.findings import ConformanceWarning, Finding, Said, examine

HEAVY = ("torch", "torchvision", "numpy", "scipy")
"""What a plugin may import inside its methods alone: a file is checked before anything of it is loaded."""


@dataclass(frozen=True)
class Candidate:
    """A class that says it is a plugin. kind: for a person. settings: as they would stand in an experiment file.

    reserved: words that its settings must leave to others. asked: statements that ask `plugin` what is asked of it
    before torch is imported.
    """

    cls: Any
    kind: str
    settings: Mapping[str, Any]
    reserved: frozenset[str]
    asked: str

    @property
    def name(self) -> str:
        """The class's own."""
        return getattr(self.cls, "__qualname__", repr(self.cls)).rpartition(".")[2]

    def made(self) -> Any:
        """The plugin with its settings, as the reader of a file makes it; None where it cannot be made."""
        try:
            return fill(self.cls, self.settings, (), Problems(self.name, None, {}))
        except Exception:  # settings without usable types: a rule says so
            return None


def prepared(candidate: Candidate) -> tuple[Any, list[Finding]]:
    """The plugin, or None, and what the rules of this file find. Warns where the docstring names no source."""
    found = examine(CLASS_RULES[:1], candidate)
    if found:
        return None, found
    found = examine(CLASS_RULES[1:], candidate)
    if "Source:" not in (candidate.cls.__doc__ or ""):
        warnings.warn(
            f"{candidate.name}: its docstring names no source; add `Source: ` with the paper, or say that it has none",
            ConformanceWarning,
            stacklevel=4,
        )
    return candidate.made(), found


def is_a_frozen_dataclass(candidate: Candidate) -> Said:
    """A plugin is a class of settings that never change."""
    if not isinstance(candidate.cls, type):
        yield candidate.name, f"is {candidate.cls!r}, not a class; give the class itself"
    elif not is_dataclass(candidate.cls) or "__dataclass_params__" not in vars(candidate.cls):
        yield candidate.name, "is no dataclass; write `@dataclass(frozen=True)` above it"
    elif not candidate.cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        yield candidate.name, "can be changed once it is made; write `@dataclass(frozen=True)`"


def can_be_found_by_name(candidate: Candidate) -> Said:
    """An entry point names a class by its module and its name there."""
    cls = candidate.cls
    there: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        there = getattr(there, part, None)
    if cls.__module__ == "__main__" or there is not cls:
        where = f"{cls.__module__}:{cls.__qualname__}"
        yield candidate.name, f"no entry point can name {where}; define it at the top of a module that can be imported"


def says_what_it_does(candidate: Candidate) -> Said:
    """The first sentence of the docstring is what `fedsim list` prints."""
    text = vars(candidate.cls).get("__doc__") or ""
    # Without one, dataclass writes the signature there.
    if not text.strip() or text.startswith(f"{candidate.cls.__name__}("):
        yield candidate.name, "has no docstring; say in its first sentence what it does, for `fedsim list`"


def settings_have_types(candidate: Candidate) -> Said:
    """Every setting has a type by which a value in a file can be refused, and a default of that type."""
    cls = candidate.cls
    try:
        hints = get_type_hints(cls, include_extras=True)
    except Exception as error:
        yield candidate.name, f"its annotations cannot be read ({error}); import their types outside TYPE_CHECKING"
        return
    for one in fields(cls):
        place = f"{candidate.name}.{one.name}"
        if not one.init:
            continue
        if hints[one.name] in (Any, object):
            yield place, "has a type that takes anything; use one of fedsim.settings, such as Count or Fraction"
            continue
        for problem in _problems(cls, one.name, one.default):
            yield place, problem


def _problems(cls: type, key: str, default: Any) -> list[str]:
    """What is wrong with one setting's type, or with its default."""
    # With no default at hand, any text will do to find out whether the type can be checked at all.
    probe = "" if default is MISSING or default is None else _plain(default)
    problems = Problems("", None, {})
    try:
        fill(cls, {key: probe}, (), problems)
    except Exception as error:
        first = str(error).splitlines()[0]
        return [f"has a type that no file can be checked against ({first}); use numbers, texts, Literal, tuple"]
    own = [one for one in problems.found if one.startswith(f": {key}")]
    if default is MISSING or default is None:
        return []
    return [f"its default does not fit its type ({one.rpartition(': ')[2]}); change one of the two" for one in own]


def _plain(value: Any) -> Any:
    """As a TOML file would have it."""
    if isinstance(value, tuple | list | frozenset | set):
        return [_plain(one) for one in value]
    return value


def settings_leave_reserved_words_alone(candidate: Candidate) -> Said:
    """A file has words of its own in the same table, and a declaration is no setting."""
    for one in fields(candidate.cls):
        if one.name in candidate.reserved:
            yield (
                f"{candidate.name}.{one.name}",
                f"is taken for a setting, but `{one.name}` means something else of {candidate.kind}; rename it, or "
                "annotate it as ClassVar if it is no setting",
            )


def settings_fit(candidate: Candidate) -> Said:
    """The plugin can be made with the settings that the check was given, and does not refuse them itself."""
    problems = Problems(candidate.name, None, {})
    try:
        plugin = fill(candidate.cls, candidate.settings, (), problems)
    except Exception:  # `settings_have_types` says why
        return
    typed = not any(True for _ in settings_have_types(candidate))
    for problem in problems.found if typed else ():
        text = problem.removeprefix(f"{candidate.name}: ")
        yield candidate.name, f"cannot be made: {text}; give settings that fit, as keywords of the check"
    if plugin is not None and hasattr(plugin, "check"):
        try:
            plugin.check()
        except InputError as error:
            yield f"{candidate.name}.check", f"refuses these settings: {error}; give others, as keywords of the check"
        except Exception as error:
            text = f"raises {type(error).__name__}: {error}; raise fedsim.errors.SettingError where settings do not do"
            yield f"{candidate.name}.check", text


def settings_are_hashable(candidate: Candidate) -> Said:
    """Plugins with equal settings are one and the same: they are keys of tables."""
    plugin = candidate.made()
    try:
        hash(plugin)
    except TypeError as error:
        yield candidate.name, f"cannot be hashed ({error}); use tuples for lists, and no `eq=False` or own `__hash__`"


def is_asked_without_torch(candidate: Candidate) -> Said:
    """A file is checked, and its mistakes are answered, before anything heavy is imported."""
    cls = candidate.cls
    if any(True for _ in can_be_found_by_name(candidate)) or candidate.made() is None:
        return
    task = json.dumps([cls.__module__, cls.__qualname__, dict(candidate.settings)], default=list)
    program = _LIGHT.format(heavy=HEAVY, asked=candidate.asked)
    # PYTHONPATH, so that what this process can import, that one can too.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", program, task], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        yield candidate.name, f"cannot be imported and asked in a process of its own: {last}; mend its imports"
        return
    imported, asked = json.loads(done.stdout.splitlines()[-1])
    remedy = "import it inside the methods that use it, or under TYPE_CHECKING"
    if imported:
        yield candidate.name, f"its module `{cls.__module__}` imports {', '.join(imported)}; {remedy}"
    elif asked:
        yield candidate.name, f"imports {', '.join(asked)} to say what it needs or objects to; {remedy}"


_LIGHT = """
import functools, importlib, json, sys
module, name, settings = json.loads(sys.argv[1])
heavy = lambda: [one for one in {heavy!r} if one in sys.modules]
cls = functools.reduce(getattr, name.split("."), importlib.import_module(module))
imported = heavy()
from fedsim.schema import Problems, fill
plugin = fill(cls, settings, (), Problems("", None, dict()))
{asked}
print(json.dumps([imported, heavy()]))
"""

CLASS_RULES = (
    is_a_frozen_dataclass,
    can_be_found_by_name,
    says_what_it_does,
    settings_have_types,
    settings_leave_reserved_words_alone,
    settings_fit,
    settings_are_hashable,
    is_asked_without_torch,
)
