"""flwr-datasets' partitioners on a table of (index, label), offline, silent, and without files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from fedsim.errors import InputError
from fedsim.seeding import derive, numpy_generator


@contextmanager
def _offline() -> Iterator[None]:
    """Hugging Face's libraries read these when they are imported. Nothing here has any use for a network."""
    wanted = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@cache
def _library() -> tuple[Any, Any]:
    """Hugging Face's datasets and Flower's partitioners. They bring along half of the scientific Python there is, which
    takes longer than importing torch: whoever draws equal shares does without.
    """
    with _offline():
        import datasets
        from flwr_datasets import partitioner as partitioners
    return datasets, partitioners


def equal_shares(labels: np.ndarray, clients: int, seed: int) -> list[np.ndarray]:
    """What `IidPartitioner` gives, as `split` has it: equal parts of the examples in random order, the first ones
    larger by one where it does not come out even. Raises InputError as `split` does.
    """
    return [np.sort(part) for part in np.array_split(_shuffled(np.asarray(labels), clients, seed), clients)]


def _shuffled(labels: np.ndarray, clients: int, seed: int) -> np.ndarray:
    """The indices of all examples in the order in which they are handed out, int64."""
    if not 1 <= clients <= len(labels):
        raise InputError(
            f"partition: {len(labels)} examples cannot be spread over {clients} clients, one each at least; "
            "take fewer clients or a larger data set"
        )
    return numpy_generator(seed, "partition", "order").permutation(len(labels))


def split(kind: str, labels: np.ndarray, clients: int, seed: int, **settings: Any) -> list[np.ndarray]:
    """One sorted int64 array of indices into `labels` for each client.

    kind: a class of `flwr_datasets.partitioner`. settings: its arguments, by name.
    Raises InputError if there are more clients than examples, and the partitioner's own ValueError where it
    cannot do what is asked.
    """
    labels = np.asarray(labels)
    order = _shuffled(labels, clients, seed)
    datasets, partitioners = _library()
    arguments = {"num_partitions": clients, **settings}
    if kind in _BY_LABEL:
        arguments |= {"partition_by": "label", "shuffle": False, "seed": derive(seed, "partition", "draw")}
    with _silent(datasets):
        partitioner = getattr(partitioners, kind)(**arguments)
        partitioner.dataset = datasets.Dataset.from_dict({"index": order, "label": labels[order]})
        shares = [
            np.sort(np.asarray(partitioner.load_partition(client).with_format("numpy")["index"][:], dtype=np.int64))
            for client in range(clients)
        ]
    _check(shares)
    return shares


def warn_of_unused(labels: np.ndarray, shares: list[np.ndarray]) -> None:
    """Warn, naming them, of classes of which no client holds an example."""
    unused = np.setdiff1d(labels, np.asarray(labels)[np.concatenate(shares)])
    if len(unused):
        warnings.warn(
            f"no client holds an example of class {', '.join(map(str, unused))}; "
            "more clients, or more classes a client, would use them",
            stacklevel=3,
        )


_BY_LABEL = frozenset({"DirichletPartitioner", "ShardPartitioner", "PathologicalPartitioner"})


def _check(shares: list[np.ndarray]) -> None:
    """A partitioner that divides nothing by nothing may hand out an example twice, or none."""
    everything = np.concatenate(shares)
    if min(map(len, shares)) == 0:
        raise ValueError("a client got no example")
    if len(np.unique(everything)) != len(everything):
        raise ValueError("an example went to two clients")


@contextmanager
def _silent(datasets: Any) -> Iterator[None]:
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()
