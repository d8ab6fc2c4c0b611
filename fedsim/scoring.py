"""Joins reconstructions with the truth. No adversary may import this module, nor `truth/` files; a test holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsim import metrics
from fedsim.experiment import LpipsNet
from fedsim.protocol import Batch
from fedsim.runs import write_whole
from fedsim.tensorfile import pack, unpack


def write_truth(folder: Path, client: int, round_: int, batch: Batch) -> None:
    """Store what a client had in a round, for scoring."""
    write_whole(_path(folder, client, round_), pack({"images": batch.images, "labels": batch.labels}, {}))


def read_truth(folder: Path, clients: Sequence[int], round_: int) -> Batch:
    """What `write_truth` stored of these clients, as one batch."""
    parts = [unpack(_path(folder, client, round_).read_bytes())[0] for client in clients]
    return Batch(*(torch.cat([part[key] for part in parts]) for key in ("images", "labels")))


def has_truth(folder: Path, client: int, round_: int) -> bool:
    """Whether it was stored."""
    return _path(folder, client, round_).exists()


@dataclass(frozen=True)
class Score:
    """The comparison of a reconstruction with the truth.

    fields: the score part of a line in attacks.jsonl. guess, truth: the paired images, (N, C, H, W) in [0, 1].
    """

    fields: dict[str, Any]
    guess: Tensor
    truth: Tensor


def score_labels(labels: Tensor | None, truth: Batch, lpips_net: LpipsNet) -> dict[str, Any]:
    """The fields of an attack that was after the labels alone: no image, no score of one."""
    return {
        "images": 0,
        "batch": len(truth),
        "psnr": None,
        "ssim": None,
        "lpips": None,
        "lpips_net": lpips_net,
        "lpips_note": None,
        "label_accuracy": None if labels is None else metrics.label_accuracy(labels, truth.labels),
        "per_image": {"psnr": [], "ssim": [], "lpips": None},
    }


def score(images: Tensor, labels: Tensor | None, truth: Batch, lpips_net: LpipsNet) -> Score:
    """Pair guess and truth one to one (Hungarian, by squared error), then score each pair.

    PSNR in dB and SSIM are higher for a better reconstruction, LPIPS (by the net named) is lower.
    lpips_net: `squeeze`, `alex`, `vgg`, or `off`.
    """
    images = images.to(torch.float32).clamp(0, 1)
    order = metrics.match(images, truth.images)
    kept = order >= 0
    guess, real = images[order[kept]], truth.images[kept]
    psnr, ssim = metrics.psnr(guess, real), metrics.ssim(guess, real)
    lpips: Tensor | None = None
    note: str | None = "turned off in the experiment file"
    if lpips_net != "off":
        lpips, note = metrics.lpips(guess, real, net=lpips_net)
    fields = {
        "images": len(images),
        "batch": len(truth),
        "psnr": float(psnr.mean()),
        "ssim": float(ssim.mean()),
        "lpips": None if lpips is None else float(lpips.mean()),
        "lpips_net": lpips_net,
        "lpips_note": note if lpips is None else None,
        "label_accuracy": None if labels is None else metrics.label_accuracy(labels, truth.labels),
        "per_image": {
            "psnr": psnr.tolist(),
            "ssim": ssim.tolist(),
            "lpips": None if lpips is None else lpips.tolist(),
        },
    }
    return Score(fields, guess, real)


def _path(folder: Path, client: int, round_: int) -> Path:
    return folder / f"c{client}-r{round_}.safetensors"
