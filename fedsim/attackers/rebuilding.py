"""A plugin in words, from which another process makes the same one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim import plugins
from fedsim.experiment import Component

PATHS = ("_file", "_folder", "_path")
"""A text setting whose name ends so is a path. It is made absolute, as the other process works elsewhere."""


def described(plugin: Component) -> dict[str, Any] | None:
    """Its name and settings as JSON data; None where it is not installed, so that no other process can find it by name,
    or has settings that JSON does not hold.
    """
    try:
        words: dict[str, Any] = json.loads(json.dumps(plugin.describe()))
        again = rebuilt(words)
        if type(again) is not type(plugin.settings) or again != plugin.settings:
            return None
    except Exception:
        return None
    return {key: str(Path(value).absolute()) if _is_path(key, value) else value for key, value in words.items()}


def rebuilt(words: Mapping[str, Any]) -> Any:
    """The plugin's settings object. Raises whatever its module and its class raise."""
    settings = {key: _tuples(value) for key, value in words.items() if key != "name"}
    return plugins.load("adversaries", words["name"])(**settings)


def _is_path(key: str, value: Any) -> bool:
    return isinstance(value, str) and key.endswith(PATHS)


def _tuples(value: Any) -> Any:
    """Settings are frozen, so what is a list in JSON was a tuple."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
