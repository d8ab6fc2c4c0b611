"""What is installed and lying on a machine: the questions of `fedsim doctor`, asked here and on every node alike."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

from fedsim import plugins
from fedsim.errors import InputError

NETS = ("squeeze", "alex", "vgg")
"""The networks that LPIPS can look with."""

GPU_SECONDS = 60.0
"""For torch to say what GPUs it finds."""

_KINDS = (*plugins.KINDS, "maskings", "unmaskings")
_ROOTS = ("fedsim", "fedsim.clients", "fedsim.server", "fedsim.adversaries")


class Sight(TypedDict):
    """What is to be seen on a machine.

    code: a hash of fedsim's own source. plugins: where each comes from, by kind and name. broken: why some of them
    cannot be imported. weights: the networks whose files are there. data_folder, data: where downloaded sets are looked
    for, and what lies there. gpus: their names and memory as torch sees them; None where it was not asked.
    gpu_fault: why torch could not say.
    """

    code: str
    plugins: dict[str, str]
    broken: dict[str, str]
    weights: list[str]
    weights_folder: str
    data_folder: str
    data: list[str]
    gpus: list[str] | None
    gpu_fault: str | None


def look(gpus: bool = False) -> Sight:
    """Look around here: some seconds, most of them for torch. gpus: whether to ask torch for GPUs, too."""
    from fedsim.data.downloaded import data_folder
    from fedsim.metrics.lpips import weights_file  # imports torch

    found = {f"{plugins.singular(kind)} {name}": (kind, name) for kind in _KINDS for name in plugins.names(kind)}
    data = data_folder(None)
    seen, fault = _gpus() if gpus else (None, None)
    return {
        "code": code(),
        "plugins": {word: plugins.origin(kind, name) for word, (kind, name) in found.items()},
        "broken": _broken(found),
        "weights": [net for net in NETS if weights_file(net).is_file()],
        "weights_folder": str(weights_file(NETS[0]).parent),
        "data_folder": str(data),
        "data": sorted(one.name for one in data.iterdir() if one.is_dir()) if data.is_dir() else [],
        "gpus": seen,
        "gpu_fault": fault,
    }


def code() -> str:
    """A hash of the source of fedsim that is imported here, however it was installed: 12 hex digits.

    Two copies of one version need not be the same code, while somebody works on it.
    """
    files: dict[str, Path] = {}
    for root in _ROOTS:
        spec = find_spec(root)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in Path(folder).rglob("*.py"):
                files["/".join([*root.split("."), *path.relative_to(folder).parts])] = path
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        if not name.startswith("fedsim/experiments/"):  # a folder of files to run, more of them in a checkout
            digest.update(f"{name}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _broken(found: dict[str, tuple[str, str]]) -> dict[str, str]:
    out = {}
    for word, (kind, name) in found.items():
        try:
            plugins.load(kind, name)
        except InputError as error:
            out[word] = str(error)
    return out


_ASK = """
import json, torch
found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps([f"{one.name}, {one.total_memory / 2**30:.0f} GiB" for one in found]))
"""


def _gpus() -> tuple[list[str] | None, str | None]:
    """In a process of its own: Ray hides GPUs from a task that asks for none, and whoever asks for one waits for it."""
    env = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK], env=env, capture_output=True, text=True, timeout=GPU_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"torch does not say ({error})"
    if done.returncode:
        return None, " ".join((done.stderr.strip().splitlines() or ["torch does not say"])[-1].split())
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return names, None
