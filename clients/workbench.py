"""What a process needs to play any client of an experiment: the data, the partition, and one model to work on."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim import batchnorm, seeding
from fedsim.clients import training
from fedsim.clients.training import Trained
from fedsim.data.federation import Federation, load_federation
from fedsim.devices import choose_device
from fedsim.experiment import Component, Experiment
from fedsim.models.initial import initial_model
from fedsim.protocol import Batch, Update


@dataclass(frozen=True)
class PrivateRound:
    """What a client had in front of it in one round: the truth that an attack is after. Derived again, never stored
    on the way.

    batch: every image of the round once, in the order of its first use. statistics: of its batches, as recorded.
    """

    batch: Batch
    statistics: Mapping[str, Tensor]


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
        experiment = self.experiment
        settings = experiment.clients.training(client)
        indices = self._schedule(client, round_)
        if not indices:
            raise ValueError(f"client {client} has no data")
        batches = [
            _encoded(batch, settings.defenses, experiment.seed, round_, client, step)
            for step, batch in enumerate(map(self.federation.data.train.batch, indices))
        ]
        batchnorm.load_statistics(self.model, {**self.initial_statistics, **buffers})
        trained = training.train(
            self.model,
            parameters,
            batches,
            settings,
            experiment.clients.algorithm,
            experiment.clients.batchnorm,
            self.federation.data.normalisation,
            record=record,
        )
        # A pass repeats no image, so only a whole pass over the client's data can be short of steps times batch.
        return trained, min(sum(map(len, indices)), len(self.federation.shares[client]))

    def perturb(self, update: Update, client: int, round_: int) -> Update:
        """The update after the client's defenses, in their order."""
        seed = self.experiment.seed
        for place, defense in enumerate(self.experiment.clients.training(client).defenses):
            if hasattr(defense.settings, "perturb"):
                update = defense.settings.perturb(update, seeding.generator(seed, "perturb", round_, client, place))
        return update

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
        used = torch.cat(self._schedule(client, round_)).tolist()
        batch = self.federation.data.train.batch(list(dict.fromkeys(used)))
        if not statistics:
            return PrivateRound(batch, {})
        trained, _ = self.train(client, round_, parameters, buffers, record=True)
        return PrivateRound(batch, batchnorm.mean_statistics(trained.passes))

    def _schedule(self, client: int, round_: int) -> list[Tensor]:
        experiment = self.experiment
        return training.schedule(
            self.federation.shares[client],
            experiment.clients.training(client),
            experiment.clients.algorithm,
            experiment.seed,
            round_,
            client,
        )


@functools.lru_cache(maxsize=2)
def workbench(experiment: Experiment) -> Workbench:
    """The workbench of this process for an experiment, made on first use."""
    return Workbench(experiment)


def _encoded(batch: Batch, defenses: tuple[Component, ...], seed: int, round_: int, client: int, step: int) -> Batch:
    for place, defense in enumerate(defenses):
        if hasattr(defense.settings, "encode"):
            batch = defense.settings.encode(batch, seeding.generator(seed, "encode", round_, client, step, place))
    return batch
