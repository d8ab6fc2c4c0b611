"""A data set spread over clients, loaded once in a process."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.data.dataset import ImageData, Images, Normalisation
from fedsim.protocol import Batch

READY_BYTES = 64 * 2**20
"""A training set whose images take no more than this as floats is kept as floats, too, once it is trained on."""


class DataSet(Protocol):
    """What a data-set component is: a frozen dataclass of settings that can load its images."""

    def load(self) -> ImageData: ...

    def __hash__(self) -> int: ...


class Partition(Protocol):
    """What a partition component is: a frozen dataclass of settings that can spread examples over clients."""

    def split(self, labels: np.ndarray, clients: int, seed: int) -> list[np.ndarray]:
        """One sorted int64 array of indices into `labels` for each client; disjoint, none empty."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Federation:
    """Who holds which training images. Clients, server and scoring share this one copy.

    shares: for each client, the indices (int64, sorted) of its images in `data.train`.
    """

    data: ImageData
    shares: tuple[Tensor, ...]

    def batch(self, client: int, positions: Tensor | Sequence[int]) -> Batch:
        """Images of one client, by their positions in its share, as float32 in [0, 1], with labels."""
        return self.data.train.batch(self._places(client, positions))

    def normalised(self, client: int, positions: Tensor | Sequence[int]) -> Batch:
        """The same images as a network sees them: `data.normalisation` of them, bit for bit, for less work."""
        places = self._places(client, positions)
        if self._ready is None:
            batch = self.data.train.batch(places)
            return Batch(self.data.normalisation.in_place(batch.images), batch.labels)
        return Batch(self._ready.index_select(0, places), self.data.train.labels.index_select(0, places))

    def _places(self, client: int, positions: Tensor | Sequence[int]) -> Tensor:
        return self.shares[client].index_select(0, torch.as_tensor(positions, dtype=torch.int64))

    @cached_property
    def _ready(self) -> Tensor | None:
        """The whole training set, normalised, float32 (N, C, H, W); None where that is more than `READY_BYTES`."""
        train = self.data.train
        if train.pixels.numel() * 4 > READY_BYTES:
            return None
        return self.data.normalisation.in_place(train.batch(torch.arange(len(train))).images)


@dataclass(frozen=True)
class Parcel:
    """A federation as plain data, for a process that is not to load and to spread it again. arguments: of
    `load_federation`. arrays: pixels and labels of the training and the test images. shares: int64, of each client.
    """

    arguments: tuple[DataSet, Partition, int, int]
    name: str
    class_names: tuple[str, ...]
    normalisation: Normalisation
    arrays: tuple[np.ndarray, ...]
    shares: tuple[np.ndarray, ...]


_given: dict[object, Any] = {}
"""What came as a parcel, by the arguments with which it would be loaded."""


def parcel(dataset: DataSet, partition: Partition, clients: int, seed: int) -> Parcel:
    """The federation of these arguments, to be sent away. The arrays are shared, not copied."""
    federation = load_federation(dataset, partition, clients, seed)
    data = federation.data
    tensors = (data.train.pixels, data.train.labels, data.test.pixels, data.test.labels)
    return Parcel(
        (dataset, partition, clients, seed),
        data.name,
        data.class_names,
        data.normalisation,
        tuple(tensor.numpy() for tensor in tensors),
        tuple(share.numpy() for share in federation.shares),
    )


def open_parcel(sent: Parcel) -> None:
    """Have `load_federation` and `load_data` give what was sent. The memory is shared with the parcel, and may be one
    that cannot be written to; nobody writes to a data set.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot be written to
        pixels, labels, test_pixels, test_labels = map(torch.from_numpy, sent.arrays)
        shares = tuple(map(torch.from_numpy, sent.shares))
    images = Images(pixels, labels), Images(test_pixels, test_labels)
    data = ImageData(sent.name, *images, sent.class_names, sent.normalisation)
    _given[sent.arguments[0]] = data
    _given[sent.arguments] = Federation(data, shares)


@lru_cache(maxsize=2)
def load_data(dataset: DataSet) -> ImageData:
    """The loaded set; the same object for equal settings. Raises what the set's `load` raises."""
    given: ImageData | None = _given.get(dataset)
    return dataset.load() if given is None else given


@lru_cache(maxsize=8)
def load_federation(dataset: DataSet, partition: Partition, clients: int, seed: int) -> Federation:
    """The data set, its training images spread over `clients` clients; the same object for equal arguments.

    Raises InputError or DataUnavailable as the set and the partition do.
    """
    given: Federation | None = _given.get((dataset, partition, clients, seed))
    if given is not None:
        return given
    data = load_data(dataset)
    shares = partition.split(data.train.labels.numpy(), clients, seed)
    return Federation(data, tuple(torch.from_numpy(share) for share in shares))
