"""Joins reconstructions with the truth. No adversary may import this module, nor `truth/` files; a test holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsim import metrics
from fedsim.data.dataset import Normalisation
from fedsim.errors import FedsimError
from fedsim.experiment import LpipsNet
from fedsim.metrics import published
from fedsim.protocol import Batch
from fedsim.runs import write_whole
from fedsim.tensorfile import pack, unpack


@dataclass(frozen=True)
class Truth:
    """What clients had in some rounds, each image once.

    images: (N, C, H, W) in [0, 1]. labels: int64 (N,). ids: int64 (N,), which of its client's images each is.
    groups: int64 (N,), numbers of the batches in which the images were first used.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    groups: Tensor

    def __len__(self) -> int:
        return len(self.images)


def write_truth(folder: Path, client: int, round_: int, batch: Batch, ids: Tensor) -> None:
    """Store what a client had in a round, for scoring. ids: int64 (N,), which of its images these are."""
    tensors = {"images": batch.images, "labels": batch.labels, "ids": ids}
    write_whole(_path(folder, client, round_), pack(tensors, {}))


def read_truth(folder: Path, clients: Sequence[int], rounds: Sequence[int]) -> Truth:
    """What `write_truth` stored of these clients in these rounds: of each client, every image once. Raises FedsimError
    where that was not stored.
    """
    parts: dict[str, list[Tensor]] = {"images": [], "labels": [], "ids": [], "groups": []}
    for client in clients:
        had: set[int] = set()
        for group, round_ in enumerate(rounds):
            try:
                stored = unpack(_path(folder, client, round_).read_bytes())[0]
            except OSError as error:  # without the place, which an attack's error is not to name
                reason = error.strerror
                raise FedsimError(
                    f"there is no truth of client {client} in round {round_} ({reason}); was this run folder copied "
                    "while attacks worked on it? The truth is not in the folder then: copy it again"
                ) from None
            new = torch.tensor([id_ not in had for id_ in stored["ids"].tolist()], dtype=torch.bool)
            had.update(stored["ids"].tolist())
            stored["groups"] = torch.full_like(stored["ids"], group)
            for key, values in parts.items():
                values.append(stored[key][new])
    return Truth(**{key: torch.cat(values) for key, values in parts.items()})


@dataclass(frozen=True)
class Score:
    """The comparison of a reconstruction with the truth.

    fields: the score part of a line in attacks.jsonl. guess, truth: the paired images, (N, C, H, W) in [0, 1].
    """

    fields: dict[str, Any]
    guess: Tensor
    truth: Tensor


def score_labels(labels: Tensor | None, truth: Batch | Truth, lpips_net: LpipsNet) -> dict[str, Any]:
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


def pairing(images: Tensor, ids: Tensor | None, truth: Truth) -> Tensor:
    """For each image of the truth, the place of its guess, int64 (N,); -1 where there is none.

    One to one, by the Hungarian method on the squared error. Where a guess says which image it is (`ids`), it is
    paired among the images of that image's batch alone: as free as the guesses of an attack on that one batch are.
    """
    images = images.to(torch.float32).clamp(0, 1)
    if ids is None:
        return metrics.match(images, truth.images)
    order = torch.full((len(truth),), -1, dtype=torch.int64)
    for group in truth.groups.unique():
        rows = torch.nonzero(truth.groups == group).flatten()
        places = torch.nonzero(torch.isin(ids, truth.ids[rows])).flatten()
        if len(places):
            matched = metrics.match(images[places], truth.images[rows])
            order[rows] = torch.where(matched >= 0, places[matched.clamp(min=0)], -1)
    return order


def score(
    images: Tensor, labels: Tensor | None, truth: Batch | Truth, lpips_net: LpipsNet, order: Tensor | None = None
) -> Score:
    """Score each pair of guess and truth, paired one to one (Hungarian, by squared error) or as `order` says.

    PSNR in dB and SSIM are higher for a better reconstruction, LPIPS (by the net named) is lower.
    lpips_net: `squeeze`, `alex`, `vgg`, or `off`. order: what `pairing` returns. Raises ValueError where it pairs none.
    """
    images = images.to(torch.float32).clamp(0, 1)
    order = metrics.match(images, truth.images) if order is None else order
    if not bool((order >= 0).any()):
        raise ValueError("none of the images claims to be one of the private ones")
    kept = order >= 0
    guess, real = images[order[kept]], truth.images[kept]
    psnr, ssim = metrics.psnr(guess, real), metrics.ssim(guess, real)
    lpips: Tensor | None = None
    note: str | None = "turned off in the experiment file"
    if lpips_net != "off":
        lpips, note = metrics.lpips(guess, real, net=lpips_net)
    fields = {
        "images": len(guess),
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


def as_published(
    images: Tensor, ids: Tensor | None, truth: Truth, lpips_net: LpipsNet, normalise: Normalisation
) -> list[float] | None:
    """LPIPS as the published evaluation of Huang et al. (NeurIPS 2021) computes it; see `fedsim.metrics.published`.

    None where LPIPS cannot be had; otherwise (N,). ids: given, images are compared with those that they claim to be;
    otherwise each with the nearest of the whole batch.
    """
    values: Tensor | None = None
    if lpips_net != "off" and ids is None:
        values, _ = published.lpips_inverted(images, truth.images, normalise, lpips_net)
    elif lpips_net != "off":
        assert ids is not None
        place = {int(id_): row for row, id_ in enumerate(ids)}
        rows = [row for row, id_ in enumerate(truth.ids.tolist()) if id_ in place]
        guess = images[[place[int(truth.ids[row])] for row in rows]]
        values, _ = published.lpips_decoded(guess, truth.images[rows], normalise, lpips_net)
    return None if values is None else values.tolist()


def has_truth(folder: Path, client: int, round_: int) -> bool:
    """Whether the truth of a client in a round is stored."""
    return _path(folder, client, round_).is_file()


def _path(folder: Path, client: int, round_: int) -> Path:
    return folder / f"c{client}-r{round_}.safetensors"


def write_update(folder: Path, client: int, round_: int, update: Mapping[str, Tensor]) -> None:
    """Store a client's update of a round, as it was after its defenses, for `update_error`."""
    write_whole(_update_path(folder, client, round_), pack(update, {}))


NO_ERROR: Mapping[str, float | None] = {"largest_error": None, "relative_error": None, "cosine": None}
"""What `update_error` returns where there is nothing to compare."""


def update_error(folder: Path, client: int, round_: int, found: Mapping[str, Tensor]) -> dict[str, float | None]:
    """How far an update that an adversary derived is from the true one; all None where the true one is not known.

    largest_error: of any coordinate. relative_error: the norm of the difference over the norm of the true update.
    cosine: of the two, 1 where they point the same way.
    """
    path = _update_path(folder, client, round_)
    if not path.is_file():
        return dict(NO_ERROR)
    stored = unpack(path.read_bytes())[0]
    true = torch.cat([value.double().flatten() for value in stored.values()])
    guess = torch.cat([found[name].double().flatten() for name in stored])
    off, norm = guess - true, torch.linalg.vector_norm(true)
    return {
        "largest_error": float(off.abs().max()),
        "relative_error": float(torch.linalg.vector_norm(off) / norm),
        "cosine": float((guess * true).sum() / (torch.linalg.vector_norm(guess) * norm)),
    }


def _update_path(folder: Path, client: int, round_: int) -> Path:
    return folder / f"update-c{client}-r{round_}.safetensors"
