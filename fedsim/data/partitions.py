"""How examples are spread over clients: settings for the partitioners of flwr-datasets.

Every class has `split(labels, clients, seed)`: one sorted int64 array of example indices a client, disjoint,
none empty, the same for the same seed. Examples are put in a seeded random order first, so that which client
gets what does not depend on the order of a file. Raises InputError, with what to change, where a partition is
impossible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedsim.errors import InputError
from fedsim.settings import Count, Positive

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class IID:
    """Equal shares (to within one example), drawn at random."""

    def split(self, labels: np.ndarray, clients: int, seed: int) -> list[np.ndarray]:
        from fedsim.data.partitioning import equal_shares

        return equal_shares(labels, clients, seed)


@dataclass(frozen=True)
class Dirichlet:
    """Each class is spread over the clients in proportions drawn from Dirichlet(alpha) (Hsu et al. 2019;
    Yurochkin et al. 2019). A small alpha gives clients few classes and unequal sizes; a large one comes
    near IID.
    """

    alpha: Positive = 0.5
    min_partition_size: Count = 10
    """Fewest examples a client may have; the draw is repeated, 11 times at most, until it holds."""
    self_balancing: bool = False
    """Whether a client that has more than the average gets no more."""

    def split(self, labels: np.ndarray, clients: int, seed: int) -> list[np.ndarray]:
        from fedsim.data.partitioning import split  # imports datasets

        if clients * self.min_partition_size > len(labels):
            raise InputError(
                f"partition dirichlet: {len(labels)} examples are too few for {clients} clients with "
                f"min_partition_size = {self.min_partition_size} each; lower either"
            )
        try:
            return split(
                "DirichletPartitioner",
                labels,
                clients,
                seed,
                alpha=float(self.alpha),
                min_partition_size=self.min_partition_size,
                self_balancing=self.self_balancing,
            )
        except ValueError as error:
            raise InputError(
                f"partition dirichlet: with alpha = {self.alpha}, no draw gave each of {clients} clients "
                f"{self.min_partition_size} examples of {len(labels)}; raise alpha, lower "
                "min_partition_size, take fewer clients, or set self_balancing = true"
            ) from error


@dataclass(frozen=True)
class Shard:
    """Examples sorted by label are cut into shards of one size, and each client draws some (McMahan et al. 2017).

    With neither setting, a client gets two shards, as in that paper. A remainder that fills no shard is left
    out unless `keep_incomplete_shard` is set.
    """

    shards_per_client: Count | None = None
    shard_size: Count | None = None
    """Examples in a shard. Given alone, all shards are dealt out, and clients may differ by one shard."""
    keep_incomplete_shard: bool = False
    """With `shard_size` alone: also deal out the last, smaller shard."""

    def split(self, labels: np.ndarray, clients: int, seed: int) -> list[np.ndarray]:
        from fedsim.data.partitioning import split  # imports datasets

        each = self.shards_per_client or (None if self.shard_size else 2)
        try:
            return split(
                "ShardPartitioner",
                labels,
                clients,
                seed,
                num_shards_per_partition=each,
                shard_size=self.shard_size,
                keep_incomplete_shard=self.keep_incomplete_shard,
            )
        except (ValueError, ZeroDivisionError) as error:
            asked = f"{each} shards" if each else "a shard"
            size = f" of {self.shard_size}" if self.shard_size else ""
            raise InputError(
                f"partition shard: {len(labels)} examples do not give {clients} clients {asked}{size} each; "
                "lower shards_per_client or shard_size, or take fewer clients"
            ) from error


@dataclass(frozen=True)
class Pathological:
    """Each client holds exactly `classes_per_client` classes; a class is shared equally by those who hold it
    (Li et al. 2022, "quantity-based label imbalance"). Where clients are few, the examples of a class may
    go to nobody: a warning says which.
    """

    classes_per_client: Count = 2
    assignment: Literal["first-deterministic", "deterministic", "random"] = "first-deterministic"
    """Which classes: client i holds class i (modulo) and random others, as in that paper; or i, i+1, ...; or
    random ones.
    """

    def split(self, labels: np.ndarray, clients: int, seed: int) -> list[np.ndarray]:
        from fedsim.data.partitioning import split, warn_of_unused  # imports datasets

        try:
            shares = split(
                "PathologicalPartitioner",
                labels,
                clients,
                seed,
                num_classes_per_partition=self.classes_per_client,
                class_assignment_mode=self.assignment,
            )
        except ValueError as error:
            raise InputError(
                f"partition pathological: {len(labels)} examples do not give {clients} clients "
                f"{self.classes_per_client} classes each: there are fewer classes, or fewer examples of a "
                "class than clients who hold it; lower classes_per_client, or take fewer clients"
            ) from error
        warn_of_unused(labels, shares)
        return shares


@dataclass(frozen=True)
class Linear:
    """Client i (from 1) gets a number of examples proportional to i, drawn at random."""

    def split(self, labels: np.ndarray, clients: int, seed: int) -> list[np.ndarray]:
        return _by_size("linear", "LinearPartitioner", labels, clients, seed)


@dataclass(frozen=True)
class Square:
    """Client i (from 1) gets a number of examples proportional to i squared, drawn at random."""

    def split(self, labels: np.ndarray, clients: int, seed: int) -> list[np.ndarray]:
        return _by_size("square", "SquarePartitioner", labels, clients, seed)


@dataclass(frozen=True)
class Exponential:
    """Client i (from 1) gets a number of examples proportional to exp(i), drawn at random."""

    def split(self, labels: np.ndarray, clients: int, seed: int) -> list[np.ndarray]:
        return _by_size("exponential", "ExponentialPartitioner", labels, clients, seed)


@dataclass(frozen=True)
class FirstOfClass:
    """Client 0 gets the first `per_class` images of each class, the others equal shares of the rest.

    The first ones in the data set's own order; the rest is drawn at random, and unused with a single client. With
    CIFAR-10 and 5 a class, client 0 holds the 50 images that Huang et al. (NeurIPS 2021) attack.
    """

    per_class: Count = 5

    def split(self, labels: np.ndarray, clients: int, seed: int) -> list[np.ndarray]:
        import numpy as np

        from fedsim.seeding import numpy_generator

        counts = np.bincount(labels)
        if counts.min(initial=self.per_class) < self.per_class:
            fewest = int(counts.argmin())
            raise InputError(
                f"partition first_of_class: class {fewest} has {counts[fewest]} of the {self.per_class} examples that "
                "client 0 is to get of each class; lower per_class, or take a larger data set"
            )
        by_class = np.argsort(labels, kind="stable")  # within a class in the data set's order
        starts = np.cumsum(counts) - counts
        first = np.sort(by_class[(starts[:, None] + np.arange(self.per_class)).ravel()])
        rest = np.setdiff1d(np.arange(len(labels)), first)
        if clients - 1 > len(rest):
            raise InputError(
                f"partition first_of_class: {len(labels)} examples leave {len(rest)} for {clients - 1} clients "
                "beside client 0; take fewer clients, lower per_class, or take a larger data set"
            )
        shuffled = numpy_generator(seed, "partition", "order").permutation(rest)
        others = np.array_split(shuffled, clients - 1) if clients > 1 else []
        return [share.astype(np.int64) for share in (first, *map(np.sort, others))]


def _by_size(name: str, kind: str, labels: np.ndarray, clients: int, seed: int) -> list[np.ndarray]:
    from fedsim.data.partitioning import split  # imports datasets

    try:
        return split(kind, labels, clients, seed)
    except ValueError as error:
        raise InputError(
            f"partition {name}: of {len(labels)} examples the smallest of {clients} clients would get none; "
            "take fewer clients or another partition"
        ) from error
