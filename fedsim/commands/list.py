"""`fedsim list [KIND]`."""

from __future__ import annotations

import argparse
import json
import tomllib
from importlib import resources

from fedsim import plugins
from fedsim.errors import InputError, suggestion
from fedsim.experiment_file import shipped

KINDS = ("experiments", *plugins.KINDS)


def run(options: argparse.Namespace) -> int:
    """Print name, what it is, and, for what is not ours, where it comes from."""
    if options.kind is not None and options.kind not in KINDS:
        raise InputError(f"list: there is no kind '{options.kind}'{suggestion(options.kind, KINDS)}")
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
    return 0


def _entries(kind: str) -> list[dict[str, str]]:
    if kind == "experiments":
        return [{"name": name, "what": _title(name), "from": "fedsim-adversarial "} for name in shipped()]
    return [
        {"name": name, "what": _first_sentence(kind, name), "from": plugins.origin(kind, name)}
        for name in plugins.names(kind)
    ]


def _first_sentence(kind: str, name: str) -> str:
    try:
        text = plugins.load(kind, name).__doc__ or ""
    except InputError as error:  # a broken plugin is listed as what it is
        return str(error)
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def _title(name: str) -> str:
    text = (resources.files("fedsim.experiments") / f"{name}.toml").read_text(encoding="utf-8")
    tomllib.loads(text)
    first = text.lstrip().splitlines()[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
