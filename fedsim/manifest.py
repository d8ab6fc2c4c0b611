"""manifest.json: what a run was made with, when, and how it ended."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fedsim import __version__
from fedsim.runs import RunFolder, finite, write_whole

PACKAGES = (
    "flwr",
    "torch",
    "torchvision",
    "torchmetrics",
    "lpips",
    "flwr-datasets",
    "numpy",
    "ray",
    "opacus",
    "cryptography",
    "tenseal",
)


def versions() -> dict[str, str | None]:
    """The installed versions of what fedsim stands on; None for an optional part that is not installed."""
    out: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = None
    return out


def start(seed: int, experiment_toml: str, who_sees_what: list[dict[str, Any]]) -> dict[str, Any]:
    """The manifest of a run that begins now."""
    return {
        "fedsim": __version__,
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "seed": seed,
        "experiment_sha256": hashlib.sha256(experiment_toml.encode()).hexdigest(),
        "command": " ".join(["fedsim", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "who_sees_what": who_sees_what,
        "status": "running",
    }


def resumed(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a run that goes on now: as it began, with when it went on, and with which versions."""
    kept = {key: value for key, value in before.items() if key not in ("status", "exit", "error", "finished")}
    again = {key: now[key] for key in ("started", "command", "fedsim", "versions")}
    return {**now, **kept, "resumed": [*before.get("resumed", []), again], "status": "running"}


def finish(manifest: dict[str, Any], status: str, exit_code: int, seconds: float, **facts: Any) -> dict[str, Any]:
    """The manifest of a run that ends now."""
    return {
        **manifest,
        **facts,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "status": status,
        "exit": exit_code,
    }


def write(folder: RunFolder, manifest: dict[str, Any]) -> None:
    """Put it into the run folder."""
    write_whole(folder.manifest, json.dumps(finite(manifest), indent=2, default=str) + "\n")


def read(folder: RunFolder) -> dict[str, Any]:
    """The manifest of a run; {} if it has none, or one that is damaged."""
    try:
        data = json.loads(folder.manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # not there; no text, no JSON
        return {}
    return data if isinstance(data, dict) else {}
