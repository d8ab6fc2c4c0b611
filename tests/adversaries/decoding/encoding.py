"""Perfect encodings of made-up images, as inversions that succeed would find them. No test is in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from fedsim import metrics
from fedsim.adversaries.base import Job, Observation, Reconstruction
from fedsim.adversaries.decoding.carlini import Carlini
from fedsim.data.dataset import Normalisation

CPU = torch.device("cpu")
NORMALISE = Normalisation((0.5, 0.45, 0.4), (0.2, 0.2, 0.25))
Part = tuple[Job, Reconstruction]


@dataclass(frozen=True)
class Private:
    """A client's images, (P, 3, side, side) in [0, 1], and their classes."""

    images: Tensor
    classes: Tensor


def private(count: int = 50, side: int = 10, seed: int = 0) -> Private:
    """Smooth images of high contrast, in ten classes."""
    rng = torch.Generator().manual_seed(seed)
    gray = torch.rand(count, 1, 4, 4, generator=rng)
    tint = 0.3 * torch.rand(count, 3, 4, 4, generator=rng)
    images = interpolate(gray + tint - 0.15, size=(side, side), mode="bicubic").clamp(0, 1)
    return Private(images, torch.arange(count) % 10)


def encoded(
    of: Private,
    *,
    name: str = "mixup",
    batch: int = 16,
    passes: int = 20,
    k: int = 4,
    never: Sequence[int] = (),
    public: int = 0,
    noise: float = 0.0,
) -> list[Part]:
    """Parts as `combine` takes them, a round for each batch.

    never: images that are mixed into nothing. public: how many of the k are not the client's, but noise.
    """
    rng = torch.Generator().manual_seed(1)
    count = len(of.images)
    used = torch.tensor([one for one in range(count) if one not in never])
    normal = NORMALISE(of.images)
    out: list[Part] = []
    for _ in range(passes):
        indices = torch.stack([used[torch.randperm(len(used), generator=rng)[:k]] for _ in range(count)])
        weights = torch.empty(count, k + 2).exponential_(generator=rng)
        weights = torch.cat([weights[:, :3].sum(1, keepdim=True), weights[:, 3:]], 1)  # Dirichlet(3, 1, ..., 1)
        weights = weights / weights.sum(1, keepdim=True)
        images = normal[indices]
        labels = one_hot(of.classes, 10).float()[indices]
        if public:
            images[:, -public:] = torch.randn(images[:, -public:].shape, generator=rng)
            labels[:, -public:] = 0
            indices[:, -public:] = -1
        mixed = torch.einsum("nk,nk...->n...", weights, images)
        if name == "instahide":
            mixed = mixed * (2 * torch.randint(2, mixed.shape, generator=rng) - 1)
        mixed = mixed + noise * torch.randn(mixed.shape, generator=rng)
        soft = torch.einsum("nk,nkc->nc", weights, labels)
        for first in range(0, count, batch):
            rows = slice(first, first + batch)
            known = {
                "known/mixing_indices": indices[rows],
                "known/mixing_coefficients": weights[rows],
                "known/labels": soft[rows],
            }
            facts = {
                "mean": list(NORMALISE.mean),
                "std": list(NORMALISE.std),
                "batch_size": batch,
                "defenses": [{"name": "gradient_pruning", "ratio": 0.9}, {"name": name, "k": k}],
            }
            seen = Observation(len(out) + 1, 0, "server", known, facts)
            images01 = NORMALISE.inverse(mixed[rows]).clamp(0, 1)
            out.append((Job((seen,)), Reconstruction(images01, None, 0.0, 1, raw=mixed[rows].clone())))
    return out


def without(parts: Sequence[Part], *keys: str) -> list[Part]:
    """The same, with less granted."""
    out = []
    for job, found in parts:
        seen = job.observations[0]
        tensors = {name: value for name, value in seen.tensors.items() if name.removeprefix("known/") not in keys}
        out.append((Job((Observation(seen.round, seen.client, seen.vantage, tensors, seen.facts),)), found))
    return out


def decode(parts: Sequence[Part], seed: int = 0, **settings: Any) -> Reconstruction:
    return Carlini(**settings).combine(parts, CPU, torch.Generator().manual_seed(seed))


def quality(found: Reconstruction, of: Private) -> Tensor:
    """PSNR in dB of each image against the one that it claims to be, or the one it matches where it claims none."""
    assert found.images is not None
    images = found.images if found.ids is not None else found.images[metrics.match(found.images, of.images)]
    return metrics.psnr(images, of.images if found.ids is None else of.images[found.ids])
