from __future__ import annotations

import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.data import partitions
from fedsim.data.partitioning import equal_shares, split
from fedsim.errors import InputError

LABELS = np.repeat(np.arange(5), 40)
KINDS = (
    partitions.IID(),
    partitions.Dirichlet(min_partition_size=2),
    partitions.Shard(),
    partitions.Pathological(),
    partitions.Linear(),
    partitions.Square(),
    partitions.Exponential(),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_disjoint_complete_sorted_and_seeded(kind: Any) -> None:
    shares = kind.split(LABELS, 5, 0)
    assert len(shares) == 5 and min(map(len, shares)) > 0
    assert all(share.dtype == np.int64 and (np.diff(share) > 0).all() for share in shares)
    assert sorted(np.concatenate(shares)) == list(range(200))
    again, other = kind.split(LABELS, 5, 0), kind.split(LABELS, 5, 1)
    assert all(np.array_equal(a, b) for a, b in zip(shares, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(shares, other, strict=True))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_one_client_gets_everything(kind: Any) -> None:
    if isinstance(kind, partitions.Pathological):
        kind = partitions.Pathological(classes_per_client=5)
    assert kind.split(LABELS, 1, 0)[0].tolist() == list(range(200))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_more_clients_than_examples(kind: Any) -> None:
    with pytest.raises(InputError, match="clients"):
        kind.split(LABELS, 201, 0)


def test_sizes_by_hand() -> None:
    sizes = {
        type(kind).__name__: [len(share) for share in kind.split(LABELS, 4, 0)]
        for kind in (partitions.IID(), partitions.Linear(), partitions.Square(), partitions.Shard())
    }
    assert sizes == {
        "IID": [50, 50, 50, 50],
        "Linear": [20, 40, 60, 80],  # 1:2:3:4 of 200
        "Square": [6, 26, 60, 108],  # 1:4:9:16 of 200, rounded down, the rest to the last
        "Shard": [50, 50, 50, 50],
    }


def test_dirichlet_alpha_sets_how_uneven_classes_are() -> None:
    def largest_class(alpha: float) -> float:
        shares = partitions.Dirichlet(alpha=alpha, min_partition_size=1).split(LABELS, 5, 0)
        return float(np.mean([np.bincount(LABELS[share]).max() / len(share) for share in shares]))

    assert largest_class(0.1) > 0.6
    assert largest_class(1000.0) < 0.3


def test_dirichlet_minimum_and_balance() -> None:
    shares = partitions.Dirichlet(alpha=0.5, min_partition_size=15).split(LABELS, 5, 0)
    assert min(map(len, shares)) >= 15
    wild = [len(s) for s in partitions.Dirichlet(alpha=0.2, min_partition_size=1).split(LABELS, 5, 0)]
    calm = partitions.Dirichlet(alpha=0.2, min_partition_size=1, self_balancing=True).split(LABELS, 5, 0)
    assert max(map(len, calm)) < max(wild)


def test_dirichlet_that_cannot_be() -> None:
    with pytest.raises(InputError, match="200 examples are too few for 30 clients with min_partition_size = 10"):
        partitions.Dirichlet().split(LABELS, 30, 0)
    with (
        warnings.catch_warnings(),
        pytest.raises(InputError, match=r"alpha = 0\.01, no draw .*raise alpha, lower min_partition_size"),
    ):
        warnings.simplefilter("error")  # the library's warnings about every attempt are kept from the user
        partitions.Dirichlet(alpha=0.01).split(LABELS, 20, 0)


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 1e6])
@pytest.mark.parametrize("balancing", [False, True])
def test_dirichlet_at_its_limits_is_a_partition_or_says_why_not(alpha: float, balancing: bool) -> None:
    kind = partitions.Dirichlet(alpha=alpha, min_partition_size=1, self_balancing=balancing)
    try:
        shares = kind.split(LABELS, 4, 0)
    except InputError:
        return
    assert sorted(np.concatenate(shares)) == list(range(200))


def test_shard() -> None:
    two = partitions.Shard(shards_per_client=2, shard_size=10).split(LABELS, 5, 0)
    assert [len(share) for share in two] == [20] * 5  # half the examples go to nobody, as asked
    # Shards of 20 of 40 a class: no shard holds two classes.
    pure = partitions.Shard(shards_per_client=2).split(LABELS, 5, 0)
    assert all(len(np.unique(LABELS[share])) <= 2 for share in pure)
    dealt = partitions.Shard(shard_size=30, keep_incomplete_shard=True).split(LABELS, 3, 0)
    assert sorted(np.concatenate(dealt)) == list(range(200))
    for kind in (
        partitions.Shard(shards_per_client=3, shard_size=20),
        partitions.Shard(shard_size=150),
        partitions.Shard(shards_per_client=100),
        partitions.Shard(shard_size=150, keep_incomplete_shard=True),
    ):
        with pytest.raises(InputError, match=r"partition shard: 200 examples do not give 5 clients .*lower"):
            kind.split(LABELS, 5, 0)


def test_pathological() -> None:
    for assignment in ("first-deterministic", "deterministic", "random"):
        kind = partitions.Pathological(classes_per_client=3, assignment=assignment)
        assert all(len(np.unique(LABELS[share])) == 3 for share in kind.split(LABELS, 7, 0))
    with pytest.warns(UserWarning, match="no client holds an example of class 2, 3, 4"):
        partitions.Pathological(assignment="deterministic").split(LABELS, 1, 0)
    with pytest.raises(InputError, match="lower classes_per_client"):
        partitions.Pathological(classes_per_client=6).split(LABELS, 3, 0)
    with pytest.raises(InputError, match="than clients who hold it"):
        partitions.Pathological(classes_per_client=5).split(LABELS, 41, 0)


@pytest.mark.parametrize("kind", [partitions.Linear(), partitions.Square(), partitions.Exponential()])
def test_a_smallest_client_with_nothing(kind: Any) -> None:
    with pytest.raises(InputError, match="the smallest of 100 clients would get none; take fewer clients"):
        kind.split(LABELS, 100, 0)
    if isinstance(kind, partitions.Exponential):
        with pytest.raises(InputError, match="the smallest of 900 clients"):  # exp(900) is infinite
            kind.split(np.zeros(2000, dtype=np.int64), 900, 0)


def test_global_generators_are_left_alone() -> None:
    random.seed(0)
    np.random.seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    for kind in KINDS:
        kind.split(LABELS, 5, 0)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]


def test_no_network_no_files_no_output(tmp_path: Path) -> None:
    """In a process of its own, with an empty home: nothing is printed, written, or asked of the network."""
    code = """
import os, socket
def refuse(*_): raise SystemExit("the network was asked")
socket.socket.connect = refuse
before = dict(os.environ)
import numpy as np
from fedsim.data.partitions import *
for kind in (IID(), Dirichlet(), Shard(), Pathological(), Linear(), Square(), Exponential()):
    kind.split(np.arange(1000) % 5, 5, 0)
assert dict(os.environ) == before, "the environment was changed"
"""
    home = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "MPLCONFIGDIR": str(tmp_path / "mpl")}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))} | home
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    written = [p for p in tmp_path.rglob("*") if p.is_file() and "mpl" not in p.parts]
    assert not written


@pytest.mark.parametrize(("examples", "clients"), [(10, 3), (11, 11), (100, 7), (1, 1), (64, 8)])
def test_equal_shares_are_those_of_the_library(examples: int, clients: int) -> None:
    labels = np.arange(examples) % 3
    for seed in range(3):
        ours, theirs = equal_shares(labels, clients, seed), split("IidPartitioner", labels, clients, seed)
        assert [one.dtype for one in ours] == [one.dtype for one in theirs]
        assert all(map(np.array_equal, ours, theirs))
