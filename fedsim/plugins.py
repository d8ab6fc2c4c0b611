"""Components by name, through entry points. Only the one that is named is imported.

A third party adds a component by publishing a package with an entry point in one of these groups; nothing of fedsim is
edited. Arbitrary import paths in an experiment file are refused on purpose: a file says *which* code runs, it does not
bring code along.
"""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fedsim.errors import InputError, suggestion

KINDS = (
    "adversaries",
    "datasets",
    "defenses",
    "derivations",
    "models",
    "partitions",
    "secure_aggregations",
    "sinks",
    "strategies",
)
"""What a file can name. There are two kinds more, the halves of a secure aggregation: `maskings` (the clients') and
`unmaskings` (the server's), each under the name of its mode."""


@functools.cache
def _named(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"fedsim.{kind}")}


def names(kind: str) -> list[str]:
    """Every installed component of a kind, in alphabetical order."""
    return sorted(_named(kind))


def origin(kind: str, name: str) -> str:
    """The distribution that a component comes from, with its version."""
    dist = _named(kind)[name].dist
    return f"{dist.name} {dist.version}" if dist else "unknown"


def load(kind: str, name: str) -> Any:
    """The component's class: a frozen dataclass whose fields are its settings.

    Raises InputError for an unknown name (with the nearest known one) and for a plugin that fails to import (with its
    own error), so that a broken third-party package is named rather than shown as a traceback.
    """
    found = _named(kind)
    if name not in found:
        raise InputError(f"no {singular(kind)} is called '{name}'{suggestion(name, found)}")
    try:
        return found[name].load()
    except (Exception, SystemExit) as error:  # a plugin must not end the command that looks it up
        raise InputError(
            f"{singular(kind)} '{name}' (from {origin(kind, name)}) cannot be imported: {type(error).__name__}: {error}"
        ) from error


def singular(kind: str) -> str:
    """`adversaries` -> `adversary`, for messages."""
    special = {
        "adversaries": "adversary",
        "datasets": "data set",
        "secure_aggregations": "secure aggregation",
        "strategies": "strategy",
    }
    return special.get(kind, kind[:-1])
