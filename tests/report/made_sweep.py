"""The folder of a sweep, made up: a table of defenses by batch sizes with plausible numbers and small pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.report.pictures import comparison

NAMES = ["none", "p50", "p70", "p90", "p95", "p99", "p999", "mix4", "mix6", "ih4", "ih6", "p90mix4", "p90ih4"]
LABELS = [
    *("None", "Pruning 0.5", "Pruning 0.7", "Pruning 0.9", "Pruning 0.95", "Pruning 0.99", "Pruning 0.999"),
    *("MixUp 4", "MixUp 6", "InstaHide 4", "InstaHide 6", "Pruning 0.9 + MixUp 4", "Pruning 0.9 + InstaHide 4"),
]
ACCURACY = [93.37, 93.19, 93.01, 90.57, 89.92, 88.61, 83.58, 92.31, 90.41, 90.04, 88.20, 91.37, 86.10]
MEAN = {
    "1": [0.19, 0.19, 0.22, 0.35, 0.42, 0.52, 0.52, 0.34, 0.46, 0.58, 0.61, 0.41, 0.60],
    "16": [0.45, 0.46, 0.47, 0.51, 0.55, 0.58, 0.61, 0.34, 0.31, 0.62, 0.63, 0.46, 0.68],
    "32": [0.45, 0.46, 0.48, 0.52, 0.54, 0.58, 0.63, 0.50, 0.49, 0.69, 0.69, 0.62, 0.73],
}
BEST = {
    "1": [0.02, 0.02, 0.05, 0.14, 0.22, 0.32, 0.36, 0.12, 0.25, 0.41, 0.42, 0.21, 0.43],
    "16": [0.18, 0.19, 0.19, 0.31, 0.43, 0.47, 0.51, 0.11, 0.13, 0.41, 0.44, 0.22, 0.54],
    "32": [0.18, 0.18, 0.22, 0.31, 0.43, 0.48, 0.54, 0.31, 0.28, 0.56, 0.56, 0.37, 0.65],
}


def score(mean: float, best: float, n: int, std: float = 0.08) -> dict[str, float]:
    """Of `n` images."""
    return {"mean": mean, "best": best, "std": std, "n": n}


def attack(adversary: str, mean: float, best: float, n: int, **changes: Any) -> dict[str, Any]:
    """One adversary's attack on a cell; `mean` and `best` are the published scoring's LPIPS."""
    return {
        "adversary": adversary,
        "label": {"inversion": "Gradient inversion", "inversion-aware": "Inversion, defense known"}[adversary],
        "n": n,
        "values": {
            "lpips": score(mean + 0.06, best + 0.05, n),
            "lpips_paper": score(mean, best, n),
            "psnr": score(22 - 18 * mean, 24 - 18 * best, n, 1.5),
            "ssim": score(max(0.9 - mean, 0.02), max(0.98 - best, 0.02), n),
        },
        "lpips_net": "squeeze",
        "lpips_note": None,
        "iterations": 300,
        "pictures": [],
        "status": "done",
        "label_accuracy": 1.0,
    } | changes


def results(columns: int = 13, rows: int = 3) -> dict[str, Any]:
    """The content of `results.json`: every cell done, and ours off the published values by 0.05."""
    names, labels, batches = NAMES[:columns], LABELS[:columns], list(MEAN)[:rows]
    cells = []
    for place, name in enumerate(names):
        training = {
            "hash": f"hash{place}",
            "folder": f"models/hash{place}",
            "test_accuracy": ACCURACY[place] / 100 - 0.2,
            "cpu_seconds": 33.0 + place,
            "time_ratio": 1.0 + place / 100,
            "rounds": 40,
        }
        for batch in batches:
            n = max(8, int(batch))
            mean, best = MEAN[batch][place] + 0.05, BEST[batch][place] + 0.05
            attacks = [attack("inversion", mean, best, n)]
            if name.startswith("p"):
                attacks.append(attack("inversion-aware", mean - 0.07, best - 0.02, n))
            cells.append(
                {
                    "at": {"defense": name, "batch": batch},
                    "folder": f"cells/{name}-{batch}-ab12cd34",
                    "status": "done",
                    "error": None,
                    "seconds": 12.5,
                    "training": training,
                    "attacks": attacks,
                }
            )
    return {
        "name": "gradattack/table2",
        "title": "Table 2: what defenses leave of gradient inversion",
        "scale": "tiny",
        "show": ["table", "pictures", "plane"],
        "table": {
            "rows": "batch",
            "columns": "defense",
            "values": ["lpips", "psnr"],
            "training": ["test_accuracy", "time_ratio"],
            "baseline": "none",
            "protocols": [
                {"name": "paper", "label": "As published", "adversaries": ["inversion"], "score": "lpips_paper"},
                {
                    "name": "corrected",
                    "label": "Corrected",
                    "adversaries": ["inversion", "inversion-aware"],
                    "score": "lpips",
                },
            ],
        },
        "published": {
            "lpips": {
                statistic: {batch: dict(zip(names, printed[batch][:columns], strict=True)) for batch in batches}
                for statistic, printed in (("mean", MEAN), ("best", BEST))
            },
            "training": {
                "test_accuracy": {name: value / 100 for name, value in zip(names, ACCURACY, strict=False)},
            },
        },
        "axes": [
            {"name": "defense", "points": [{"name": n, "label": w} for n, w in zip(names, labels, strict=True)]},
            {"name": "batch", "points": [{"name": batch, "label": batch} for batch in batches]},
        ],
        "cells": cells,
    }


def write(folder: Path, content: dict[str, Any], pictures: bool = True, most: int = 16) -> Path:
    """The folder, with a picture for each attack; of at most `most` images each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    if pictures:
        grey = np.linspace(0, 1, 32)
        for cell in content["cells"]:
            count = min(int(cell["at"]["batch"]), most)
            truth = np.clip(
                rng.uniform(0, 1, (count, 3, 1, 1)) * grey[None, None, :, None]
                + rng.uniform(0, 1, (count, 3, 1, 1)) * grey[None, None, None, ::-1],
                0,
                1,
            )
            for hit in cell["attacks"]:
                amount = min(hit["values"]["lpips"]["mean"], 1)
                guess = truth * (1 - amount) + rng.uniform(0, 1, truth.shape) * amount
                name = f"{cell['folder']}/reconstructions/{hit['adversary']}.png"
                comparison(truth, guess, folder / name)
                hit["pictures"] = [name]
    (folder / "results.json").write_text(json.dumps(content))
    return folder
