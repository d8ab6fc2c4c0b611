"""results.json: all that tables and the page are made of, put together from the folders of the cells."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim import manifest as manifests
from fedsim.runs import RunFolder, finite, read_lines, write_whole
from fedsim.sweeps.folder import DONE, SweepFolder, read_json, state
from fedsim.sweeps.words import PER_IMAGE

_LESS_IS_CLOSER = frozenset({"lpips", "lpips_paper"})


def collect(path: Path) -> dict[str, Any]:
    """The results of a sweep's folder, as they are now: cells that have not been run are waiting."""
    folder = SweepFolder(path)
    plan = read_json(folder.record)
    kept = ("name", "title", "scale", "words", "show", "table", "chart", "published", "axes")
    labels = plan.get("adversaries", {})
    cells = [_cell(folder, cell, labels) for cell in plan.get("cells", [])]
    return {**{key: plan.get(key) for key in kept}, "cells": cells}


def write(path: Path, parts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Collect, and write results.json. parts: of the page that are not made of cells, by their names in `show`."""
    results: dict[str, Any] = finite({**collect(path), **(parts or {})})
    write_whole(SweepFolder(path).results, json.dumps(results, indent=1, allow_nan=False) + "\n")
    return results


def _cell(folder: SweepFolder, planned: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    run = RunFolder(folder.path / planned["folder"])
    status = state(run, planned["hash"])
    manifest = manifests.read(run) if status != "waiting" else {}
    return {
        "at": planned["at"],
        "folder": planned["folder"],
        # What was broken off is waiting: the sweep will run it again.
        "status": status if status in (DONE, "failed") else "waiting",
        "error": manifest.get("error"),
        "seconds": manifest.get("seconds"),
        "training": _training(folder, planned["training"]) if planned.get("training") else None,
        "attacks": _attacks(run, planned["folder"], labels) if status == DONE else [],
    }


def _training(folder: SweepFolder, planned: Mapping[str, Any]) -> dict[str, Any]:
    run = RunFolder(folder.path / planned["folder"])
    done = state(run, planned["hash"]) == DONE
    manifest = manifests.read(run) if done else {}
    measured = [line["test_accuracy"] for line in read_lines(run.rounds) if line.get("test_accuracy") is not None]
    timing = read_json(run.path / "timing.json")
    ratio = timing.get("ratio") if timing.get("baseline") == planned["baseline"] else None
    return {
        "hash": planned["hash"],
        "folder": planned["folder"],
        "rounds": planned["rounds"],
        "test_accuracy": measured[-1] if done and measured else None,
        "cpu_seconds": manifest.get("cpu_seconds"),
        "time_ratio": 1.0 if planned["baseline"] == planned["hash"] else ratio,
    }


def _attacks(run: RunFolder, folder: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """One entry for each adversary of a cell, over all its lines."""
    by_adversary: dict[str, list[dict[str, Any]]] = {}
    for line in read_lines(run.attacks):
        by_adversary.setdefault(str(line.get("adversary")), []).append(line)
    return [_attack(name, lines, folder, _label(name, labels)) for name, lines in by_adversary.items()]


def _label(name: str, labels: Mapping[str, str]) -> str:
    """The adversary's label; for one of several answers, "ID-NAME", that of the adversary and the answer's name."""
    if name in labels:
        return labels[name]
    whole = max((one for one in labels if name.startswith(f"{one}-")), key=len, default="")
    return f"{labels[whole]}, {name[len(whole) + 1 :].replace('_', ' ')}" if whole else name


def _attack(name: str, lines: Sequence[Mapping[str, Any]], folder: str, label: str) -> dict[str, Any]:
    values = {key: numbers for key in PER_IMAGE if (numbers := _numbers(lines, key)) is not None}
    failed = [str(line.get("status")) for line in lines if line.get("status") != DONE]
    known = [(float(one["label_accuracy"]), _size(one)) for one in lines if one.get("label_accuracy") is not None]
    return {
        "adversary": name,
        "combined": any(line.get("combined") for line in lines),
        "label": label,
        "n": max((one["n"] for one in values.values()), default=0),
        "values": values,
        "lpips_net": _first(line.get("lpips_net") for line in lines),
        "lpips_note": _first(line.get("lpips_note") for line in lines),
        "iterations": max((int(line.get("iterations") or 0) for line in lines), default=0),
        "pictures": [f"{folder}/{line['picture']}" for line in lines if line.get("picture")],
        "status": failed[0] if failed else DONE,
        "error": _first(line.get("error") for line in lines),
        "label_accuracy": sum(a * n for a, n in known) / sum(n for _, n in known) if known else None,
    }


def _numbers(lines: Iterable[Mapping[str, Any]], key: str) -> dict[str, float | int] | None:
    """Mean, best and standard deviation (of the population) over all images; None where none was measured.

    The best reconstruction is the most leaked image.
    """
    found = [number for line in lines for number in (line.get("per_image") or {}).get(key) or [] if _is_number(number)]
    if not found:
        return None
    best = min(found) if key in _LESS_IS_CLOSER else max(found)
    return {"mean": statistics.fmean(found), "best": best, "std": statistics.pstdev(found), "n": len(found)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _size(line: Mapping[str, Any]) -> int:
    return int(line.get("batch") or 1)


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value), None)
