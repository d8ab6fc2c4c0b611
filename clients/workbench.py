"""What a process needs to play any client of an experiment: the data, the partition, and one model to work on."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim import batchnorm, seeding
from fedsim.clients import training
from fedsim.clients.defenses.base import Mixed, Pool, Site
from fedsim.clients.training import Trained
from fedsim.data.federation import Federation, load_federation
from fedsim.devices import choose_device
from fedsim.experiment import Experiment
from fedsim.models.initial import initial_model
from fedsim.protocol import Batch, Update

Memory = Mapping[int, Mapping[str, Tensor]]
"""What the defenses of a client remember from round to round, by their place in its list."""


@dataclass(frozen=True)
class PrivateRound:
    """What a client had in front of it in one round: the truth that an attack is after. Derived again, never stored
    on the way.

    batch: every image of the round once, in the order of its first use. positions: int64 (N,), which of the client's
    images these are. labels: as trained with when first used, int64 (N,) or, where mixed, float32 (N, classes).
    statistics: of its batches, as recorded. indices, coefficients: (N, k), what each was mixed from when first used;
    None without such an encoding.
    """

    batch: Batch
    positions: Tensor
    labels: Tensor
    statistics: Mapping[str, Tensor]
    indices: Tensor | None = None
    coefficients: Tensor | None = None


@dataclass(frozen=True)
class _Work:
    """A client's round of training, prepared. positions: of each step's images in the client's share. mixed: how they
    were encoded; None where no defense mixes.
    """

    positions: Sequence[Tensor]
    batches: Sequence[Batch]
    mixed: Sequence[Mixed | None]


class Workbench:
    """One process's copy of an experiment's data and model."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.federation: Federation = load_federation(
            experiment.data.dataset.settings,
            experiment.data.partition.settings,
            experiment.clients.count,
            experiment.seed,
        )
        self.device = choose_device(experiment.runtime.device)
        self.model = initial_model(experiment, self.federation.data).to(self.device)
        # Every client starts with these, before it has seen or kept any others.
        self.initial_statistics = batchnorm.statistics(self.model)

    def train(
        self,
        client: int,
        round_: int,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        *,
        record: bool = False,
    ) -> tuple[Trained, int]:
        """One client's local training in one round, and on how many different images."""
        experiment, work = self.experiment, self._work(client, round_)
        settings = experiment.clients.training(client)
        batchnorm.load_statistics(self.model, {**self.initial_statistics, **buffers})
        trained = training.train(
            self.model,
            parameters,
            work.batches,
            settings,
            experiment.clients.algorithm,
            experiment.clients.batchnorm,
            self.federation.data.normalisation,
            record=record,
        )
        # A pass repeats no image, so only a whole pass over the client's data can be short of steps times batch.
        return trained, min(sum(map(len, work.positions)), len(self.federation.shares[client]))

    def perturb(
        self, update: Update, client: int, round_: int, parameters: Mapping[str, Tensor], memory: Memory
    ) -> tuple[Update, Memory]:
        """The update after the client's defenses, in their order, and what each of them remembers.

        parameters: the broadcast ones. memory: by the defense's place, what it returned in an earlier round.
        """
        seed, kept, batches = self.experiment.seed, dict(memory), None
        for place, defense in enumerate(self.experiment.clients.training(client).defenses):
            rng = seeding.generator(seed, "perturb", round_, client, place)
            if hasattr(defense.settings, "perturb_at"):
                batches = batches or self._work(client, round_).batches
                normalise = self.federation.data.normalisation
                site = Site(round_, self.model, parameters, batches, normalise, memory.get(place, {}))
                update, kept[place] = defense.settings.perturb_at(update, site, rng)
            elif hasattr(defense.settings, "perturb"):
                update = defense.settings.perturb(update, rng)
        return update, kept

    def replay(
        self,
        client: int,
        round_: int,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        *,
        statistics: bool,
    ) -> PrivateRound:
        """Derive again what the client had in a round. Batch statistics cost a training, so they are asked for."""
        work = self._work(client, round_)
        used = torch.cat(list(work.positions))
        rows: dict[int, int] = {}
        for row, position in enumerate(used.tolist()):
            rows.setdefault(position, row)
        first = torch.tensor(list(rows.values()))
        labels = torch.cat([one.labels for one in work.batches])[first]
        mixed = [one for one in work.mixed if one is not None]
        passes: Sequence[Mapping[str, Tensor]] = ()
        if statistics:
            passes = self.train(client, round_, parameters, buffers, record=True)[0].passes
        return PrivateRound(
            self.federation.batch(client, used[first]),
            used[first],
            labels,
            batchnorm.mean_statistics(passes),
            torch.cat([one.indices for one in mixed])[first] if mixed else None,
            torch.cat([one.coefficients for one in mixed])[first] if mixed else None,
        )

    def _work(self, client: int, round_: int) -> _Work:
        """The batches of a client's round, encoded. Raises ValueError for a client without data."""
        experiment, share = self.experiment, self.federation.shares[client]
        settings = experiment.clients.training(client)
        steps = training.schedule(
            torch.arange(len(share)), settings, experiment.clients.algorithm, experiment.seed, round_, client
        )
        if not steps:
            raise ValueError(f"client {client} has no data")
        batches, mixtures = [], []
        for step, positions in enumerate(steps):
            batch, mixed = self.federation.batch(client, positions), None
            for place, defense in enumerate(settings.defenses):
                rng = seeding.generator(experiment.seed, "encode", round_, client, step, place)
                if hasattr(defense.settings, "mix"):
                    mixed = defense.settings.mix(batch, self._pool(client, positions), rng)
                    batch = mixed.batch
                elif hasattr(defense.settings, "encode"):
                    batch = defense.settings.encode(batch, rng)
            batches.append(batch)
            mixtures.append(mixed)
        return _Work(steps, batches, mixtures)

    def _pool(self, client: int, positions: Tensor) -> Pool:
        data = self.federation.data
        take = functools.partial(self.federation.batch, client)
        return Pool(len(self.federation.shares[client]), take, positions, data.classes, data.normalisation)


@functools.lru_cache(maxsize=2)
def workbench(experiment: Experiment) -> Workbench:
    """The workbench of this process for an experiment, made on first use."""
    return Workbench(experiment)
