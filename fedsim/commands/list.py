"""`fedsim list [KIND]`."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import MISSING, asdict, fields, is_dataclass
from importlib import resources
from typing import Any

from fedsim import __version__, plugins
from fedsim.errors import InputError, suggestion
from fedsim.experiment_file import shipped
from fedsim.sweeps import file as sweep_files

ASSUMPTIONS = "assumptions"
"""A kind of its own: which adversary assumes what, as a table."""

THREAT_MODELS = "threat-models"
"""Another: the threat models that a file can name, and which adversary fits under which."""

KINDS = ("experiments", "sweeps", *plugins.KINDS)


def run(options: argparse.Namespace) -> int:
    """Print name, what it is, and, for what is not ours, where it comes from."""
    tables = {ASSUMPTIONS: _assumptions, THREAT_MODELS: _threat_models}
    if options.kind is not None:  # two words, however they are joined
        options.kind = next(
            (one for one in (*KINDS, *tables) if one.replace("-", "_") == options.kind.replace("-", "_")), options.kind
        )
    if options.kind in tables:
        return tables[options.kind](options.json)
    if options.kind is not None and options.kind not in KINDS:
        known = (*KINDS, *tables)
        raise InputError(f"list: there is no kind '{options.kind}'{suggestion(options.kind, known)}")
    kinds = [options.kind] if options.kind else list(KINDS)
    found = {kind: _entries(kind) for kind in kinds}
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for kind, entries in found.items():
        if len(found) > 1:
            print(f"{kind}:")
        width = max((len(entry["name"]) for entry in entries), default=0)
        for entry in entries:
            foreign = "" if entry["from"].startswith("fedsim-adversarial ") else f"  [{entry['from']}]"
            print(f"  {entry['name']:{width}}  {entry['what']}{foreign}")
            if options.kind and entry.get("settings"):
                shown = ", ".join(_shown(key, value) for key, value in entry["settings"].items())
                print(f"  {'':{width}}    {shown}")
    return 0


def _assumptions(as_json: bool) -> int:
    from fedsim.adversaries import assumptions

    if as_json:
        print(json.dumps({ASSUMPTIONS: [asdict(row) for row in assumptions.all_of_them()]}, indent=2))
    else:
        print(assumptions.markdown())
    return 0


def _threat_models(as_json: bool) -> int:
    from fedsim.adversaries import fitting

    print(json.dumps({THREAT_MODELS: fitting.as_data()}, indent=2) if as_json else fitting.markdown())
    return 0


def _entries(kind: str) -> list[dict[str, Any]]:
    if kind == "experiments":
        return [{"name": name, "what": _title(name), "from": f"fedsim-adversarial {__version__}"} for name in shipped()]
    if kind == "sweeps":
        ours = f"fedsim-adversarial {__version__}"
        return [{"name": name, "what": _sweep_title(name), "from": ours} for name in sweep_files.shipped()]
    return [
        {
            "name": name,
            "what": _first_sentence(kind, name),
            "from": plugins.origin(kind, name),
            "settings": _settings(kind, name),
        }
        for name in plugins.names(kind)
    ]


def _first_sentence(kind: str, name: str) -> str:
    try:
        text = plugins.load(kind, name).__doc__ or ""
    except InputError as error:  # a broken plugin is listed as what it is
        return str(error)
    # A full stop ends the sentence, but not the one of "et al."
    return re.split(r"(?<!al)\. ", " ".join(text.split("\n\n")[0].split()))[0].rstrip(".")


def _shown(key: str, value: Any) -> str:
    if value == "required":
        return f"{key} (required)"
    return f"{key} (optional)" if value is None else f"{key} = {json.dumps(value)}"


def _settings(kind: str, name: str) -> dict[str, Any]:
    """A component's settings with their defaults; "required" where there is none."""
    try:
        cls = plugins.load(kind, name)
    except InputError:
        return {}
    out: dict[str, Any] = {}
    for one in fields(cls) if is_dataclass(cls) else ():
        default = one.default if one.default_factory is MISSING else one.default_factory()
        out[one.name] = "required" if default is MISSING else default
    return out


def _title(name: str) -> str:
    text = (resources.files("fedsim.experiments") / f"{name}.toml").read_text(encoding="utf-8")
    first = text.lstrip().splitlines()[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _sweep_title(name: str) -> str:
    try:
        return sweep_files.read(name).title
    except InputError as error:  # a broken one is listed as what it is
        return str(error.problems[0])
