"""The folder of a sweep: what is in it, and what of it is done.

sweep.toml (the file with scale and settings), sweep.json (the plan, and how it went), models/HASH/ (a run folder for
each training, with timing.json beside), cells/LABEL-HASH/ (a run folder each), results.json, table.md, table.csv,
cells.csv, report.html, and parts.json (parts of the page that are not made of cells).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w

from fedsim import manifest as manifests
from fedsim.errors import InputError
from fedsim.runs import RunFolder, check_new, finite, write_whole
from fedsim.sweeps.cells import Cell, Grid, Training, settings_of

DONE = "done"


@dataclass(frozen=True)
class SweepFolder:
    """Where the parts of a sweep are."""

    path: Path

    @property
    def file(self) -> Path:
        """The sweep file, as it was run."""
        return self.path / "sweep.toml"

    @property
    def record(self) -> Path:
        """The plan, and how it went."""
        return self.path / "sweep.json"

    @property
    def results(self) -> Path:
        """What tables and page are made of."""
        return self.path / "results.json"

    @property
    def parts(self) -> Path:
        """Parts of the page that are not made of cells, as they were worked out."""
        return self.path / "parts.json"

    def model(self, training: Training) -> RunFolder:
        """The run folder of a training."""
        return RunFolder(self.path / training.folder)

    def cell(self, cell: Cell) -> RunFolder:
        """The run folder of a cell."""
        return RunFolder(self.path / cell.folder)

    def checkpoint(self, training: Training) -> Path:
        """The model that cells start from."""
        return (self.model(training).checkpoint(training.attack_round)).absolute()

    def timing(self, training: Training) -> Path:
        """What the training's defenses cost, measured."""
        return self.path / training.folder / "timing.json"

    def is_trained(self, training: Training) -> bool:
        """Whether the model is there."""
        return state(self.model(training), training.hash) == DONE and self.checkpoint(training).is_file()

    def is_timed(self, training: Training, baseline: Training) -> bool:
        """Whether the cost has been measured against this baseline."""
        return bool(read_json(self.timing(training)).get("baseline") == baseline.hash)

    def is_done(self, cell: Cell) -> bool:
        """Whether a cell has been run, to the end and with the same content."""
        return state(self.cell(cell), cell.hash) == DONE


def is_sweep_folder(path: Path) -> bool:
    """Whether a folder is a sweep's. What is no path (too long, or with a NUL byte) is none."""
    try:
        return (path / "sweep.json").is_file()
    except (OSError, ValueError):
        return False


def open_folder(path: Path, grid: Grid) -> SweepFolder:
    """The folder, made or gone on with. Raises InputError where it belongs to something else."""
    folder = SweepFolder(path)
    if is_sweep_folder(path):
        other = read_json(folder.record).get("name")
        if other != grid.sweep.name:
            raise InputError(f"--out {path}: holds the sweep '{other}', not '{grid.sweep.name}'; choose another folder")
    else:
        check_new(path)
    try:
        for part in (path / "models", path / "cells"):
            part.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written: {error.strerror}; choose another place") from None
    return folder


def begin(folder: SweepFolder, grid: Grid) -> None:
    """Write the sweep and its plan into the folder."""
    write_whole(folder.file, tomli_w.dumps(settings_of(grid)))
    before = read_json(folder.record)
    record = {"status": "running", "started": before.get("started") or now(), "seconds": before.get("seconds", 0.0)}
    write_record(folder, plan(grid) | record)


def plan(grid: Grid) -> dict[str, Any]:
    """What results are collected by, as JSON data: the sweep's words, and where each cell's run is."""
    sweep = grid.sweep
    labels = {str(item.get("id", name)): str(item.get("label", name)) for name, item in sweep.templates.items()}
    return {
        "name": sweep.name,
        "title": sweep.title,
        "scale": grid.scale,
        "words": sweep.scales[grid.scale].words if grid.scale is not None else "",
        "settings": list(grid.settings),
        "show": list(sweep.show),
        "table": asdict(sweep.table) if sweep.table else {},
        "chart": asdict(sweep.chart) if sweep.chart else {},
        "published": sweep.published,
        "axes": [
            {
                "name": axis.name,
                "label": axis.label or axis.name,
                "points": [{"name": point.name, "label": point.label or point.name} for point in axis.points],
            }
            for axis in grid.axes
        ],
        "adversaries": labels,
        "cells": [
            {
                "at": dict(cell.at),
                "folder": cell.folder,
                "hash": cell.hash,
                "training": _training(cell.training, cell.baseline) if cell.training else None,
            }
            for cell in grid.cells
        ],
    }


def _training(training: Training, baseline: Training | None) -> dict[str, Any]:
    return {
        "hash": training.hash,
        "folder": training.folder,
        "rounds": training.experiment.rounds,
        "baseline": baseline.hash if baseline else None,
    }


def write_record(folder: SweepFolder, record: Mapping[str, Any]) -> None:
    """sweep.json."""
    write_whole(folder.record, json.dumps(finite(record), indent=2, default=str) + "\n")


def now() -> str:
    """For a record."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is none, or none that is whole."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def state(run: RunFolder, content: str | None = None) -> str:
    """How a run stands: done, failed, running (or broken off), interrupted, or waiting where there is none.

    content: the hash that the run has to have been made with.
    """
    manifest = manifests.read(run)
    if not manifest or (content is not None and manifest.get("content_sha256") != content):
        return "waiting"
    return str(manifest.get("status", "waiting"))


def clear(run: RunFolder) -> None:
    """Remove what a broken-off run has left."""
    if run.path.exists():
        shutil.rmtree(run.path)


def mark_failed(run: RunFolder, content: str, error: str) -> None:
    """Record that a run failed, where it could not do so itself."""
    run.path.mkdir(parents=True, exist_ok=True)
    facts = {"content_sha256": content, "status": "failed", "error": error, "exit": 1, "finished": now()}
    manifests.write(run, manifests.read(run) | facts)
