"""Attacks in a process of their own, which gets the plugin's name and settings and the bytes of the jobs.

As a program (`python -m fedsim.testing.elsewhere FOLDER`) it is that process.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from fedsim import seeding
from fedsim.adversaries.base import Job
from fedsim.adversaries.storage import JobStore
from fedsim.schema import Problems, fill
from fedsim.testing.calls import flattened

SEED = 0


def run(plugin: Any, jobs: Sequence[Job], places: Sequence[int]) -> list[Mapping[str, str]] | str:
    """What each job's answer digests to (see `flattened`), or {"error": ...}; a text where the process itself failed.

    places: what each job's generator is seeded by.
    """
    cls = type(plugin)
    settings = {one.name: getattr(plugin, one.name) for one in fields(plugin)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = _store(folder)
        task = {
            "module": cls.__module__,
            "name": cls.__qualname__,
            "settings": {key: value for key, value in settings.items() if value is not None},
            "threads": torch.get_num_threads(),
            "jobs": [store.put(job, {}, "tried") for job in jobs],
            "places": list(places),
        }
        (folder / "task.json").write_text(json.dumps(task, default=list))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", "fedsim.testing.elsewhere", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        found: list[Mapping[str, str]] = json.loads((folder / "answers.json").read_text())
        return found


def _store(folder: Path) -> JobStore:
    for name in ("captures", "jobs"):
        (folder / name).mkdir(exist_ok=True)
    return JobStore(folder / "captures", folder / "jobs")


def _main(folder: Path) -> None:
    task = json.loads((folder / "task.json").read_text())
    torch.set_num_threads(task["threads"])
    cls: Any = functools.reduce(getattr, task["name"].split("."), importlib.import_module(task["module"]))
    plugin = fill(cls, task["settings"], (), Problems(task["name"], None, {}))
    store, found = _store(folder), []
    for address, place in zip(task["jobs"], task["places"], strict=True):
        try:
            rng = seeding.generator(SEED, "attack", place)
            found.append(flattened(plugin.attack(store.get(address), torch.device("cpu"), rng)))
        except Exception as error:
            found.append({"error": f"{type(error).__name__}: {error}"})
    (folder / "answers.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
