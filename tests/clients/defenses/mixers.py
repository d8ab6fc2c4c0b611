"""A client with images of its own, for tests of encodings that mix them. No test is in here."""

from __future__ import annotations

import torch

from fedsim.clients.defenses.base import Pool
from fedsim.data.dataset import Normalisation
from fedsim.protocol import Batch

CLASSES = 5


def client(size: int = 30, shape: tuple[int, ...] = (3, 6, 6)) -> Batch:
    """All of a client's images."""
    draws = torch.Generator().manual_seed(100)
    return Batch(torch.rand(size, *shape, generator=draws), torch.randint(CLASSES, (size,), generator=draws))


def pool(images: Batch, positions: list[int]) -> tuple[Batch, Pool]:
    """A batch of the client's images, with where it comes from."""

    def take(where: torch.Tensor) -> Batch:
        return Batch(images.images[where], images.labels[where])

    channels = images.images.shape[1]
    normalise = Normalisation((0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels])
    where = torch.tensor(positions)
    return take(where), Pool(len(images), take, where, CLASSES, normalise)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
