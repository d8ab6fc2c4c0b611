"""What a process needs to play any client of an experiment: the data, the partition, and one model to work on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fedsim import batchnorm, seeding
from fedsim.clients import training
from fedsim.clients.defenses.base import Mixed, Plan, Pool, Site
from fedsim.clients.training import Trained
from fedsim.data.federation import Federation, load_federation
from fedsim.devices import choose_device
from fedsim.errors import InputError
from fedsim.experiment import Experiment
from fedsim.models import precode
from fedsim.models.initial import initial_model
from fedsim.protocol import Batch, Update
from fedsim.secagg.base import Terms
from fedsim.secagg.terms import terms_of


class Ahead(Protocol):
    """Has worked out, or works out for several clients together, what one of them is asked for; see `vectorized`."""

    def take(
        self, client: int, round_: int, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> Trained | None:
        """The client's training in the round from these very tensors; None where it is left to be trained by itself."""
        ...


Memory = Mapping[int, Mapping[str, Tensor]]
"""What the defenses of a client remember from round to round, by their place in its list."""


@dataclass(frozen=True)
class PrivateRound:
    """What a client had in front of it in one round: the truth that an attack is after. Derived again, never stored
    on the way.

    batch: every image of the round once, in the order of its first use. positions: int64 (N,), which of the client's
    images these are. encoded, labels: as trained with when first used, float32 (N, C, H, W), and int64 (N,) or, where
    mixed, float32 (N, classes). statistics: of its batches, as recorded. indices, coefficients: (N, k), what each was
    mixed from when first used; None without such an encoding.
    """

    batch: Batch
    positions: Tensor
    encoded: Tensor
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


@dataclass(frozen=True)
class _Maker:
    """A defense that makes the gradients of a client, its place among the client's defenses, and what it plans by."""

    settings: Any
    place: int
    plan: Plan


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
        self.body = training.Body(self.model)
        # Every client starts with these, before it has seen or kept any others.
        self.initial_statistics = batchnorm.statistics(self.model)
        self.ahead: Ahead | None = None
        self._terms: Terms | None = None
        self._noisy = bool(precode.bottlenecks(self.model))
        self._makers: dict[int, _Maker | None] = {}
        self._objections: dict[_Maker, str | None] = {}

    @property
    def terms(self) -> Terms:
        """What is agreed on before a round of secure aggregation."""
        if self._terms is None:
            self._terms = terms_of(self.experiment, self.federation, self.model)
        return self._terms

    def train(
        self,
        client: int,
        round_: int,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        *,
        record: bool = False,
    ) -> tuple[Trained, int]:
        """One client's local training in one round, and on how many different images.

        Where a defense makes the gradients that number is the expected one, which tells nothing of the draw. Raises
        InputError where it cannot.
        """
        experiment, steps = self.experiment, self.steps(client, round_)
        settings, maker = experiment.clients.training(client), self._maker(client)
        # A pass repeats no image, so only a whole pass over the client's data can be short of steps times batch.
        examples = min(sum(map(len, steps)), len(self.federation.shares[client]))
        if self.ahead is not None and not record:
            found = self.ahead.take(client, round_, parameters, buffers)
            if found is not None:
                return found, examples
        plain = self.is_plain(client)
        batches = self._normalised(client, steps) if plain else self._encoded(client, round_, steps).batches
        batchnorm.load_statistics(self.model, {**self.initial_statistics, **buffers})
        self._seed_noise(client, round_)
        if reason := self.objection(client):
            raise InputError(f"client {client}: defense {reason}")
        with seeding.global_draws(self.device, experiment.seed, "training", round_, client):
            trained = training.train(
                self.body,
                parameters,
                batches,
                settings,
                experiment.clients.algorithm,
                experiment.clients.batchnorm,
                None if plain else self.federation.data.normalisation,
                gradient=None if maker is None else self._gradient(maker, client, round_),
                record=record,
            )
        if maker is not None:
            return trained, min(maker.plan.batch_size * maker.plan.steps, maker.plan.size)
        return trained, examples

    def objection(self, client: int) -> str | None:
        """Why the defense that makes a client's gradients cannot work, after its name; None if it can, or there is
        none. To be asked before round 0.
        """
        maker, settings = self._maker(client), self.experiment.clients.training(client)
        if maker is None:
            return None
        if maker not in self._objections:
            reason = maker.settings.objection_to(self.model, self.experiment.clients.batchnorm)
            reason = reason or maker.settings.objection_to_plan(self.model, maker.plan)
            if settings.batches != "random":
                reason = f'it draws batches at random, by Poisson sampling; leave out batches = "{settings.batches}"'
            self._objections[maker] = reason and f"'{settings.defenses[maker.place].name}': {reason}"
        return self._objections[maker]

    def spend(self, client: int, memory: Memory) -> tuple[Memory, tuple[float, float] | None]:
        """What the client's defenses remember when a round is over, and the epsilon and delta that its private training
        has cost in all rounds so far; None where none is.
        """
        maker = self._maker(client)
        if maker is None:
            return memory, None
        kept = maker.settings.spend(memory.get(maker.place, {}), maker.plan)
        return {**memory, maker.place: kept}, maker.settings.spent(kept)

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
                batches = self._shown(client, round_) if batches is None else batches
                normalise = self.federation.data.normalisation
                # The noise of the local step again, should the defense pass the batch through the model.
                self._seed_noise(client, round_)
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
        first = torch.tensor(list(rows.values()), dtype=torch.int64)
        labels = torch.cat([one.labels for one in work.batches])[first]
        mixed = [one for one in work.mixed if one is not None]
        passes: Sequence[Mapping[str, Tensor]] = ()
        if statistics:
            passes = self.train(client, round_, parameters, buffers, record=True)[0].passes
        return PrivateRound(
            self.federation.batch(client, used[first]),
            used[first],
            torch.cat([one.images for one in work.batches])[first],
            labels,
            batchnorm.mean_statistics(passes),
            torch.cat([one.indices for one in mixed])[first] if mixed else None,
            torch.cat([one.coefficients for one in mixed])[first] if mixed else None,
        )

    def _work(self, client: int, round_: int) -> _Work:
        """The batches of a client's round, encoded. Raises ValueError for a client without data."""
        return self._encoded(client, round_, self.steps(client, round_))

    def is_plain(self, client: int) -> bool:
        """Whether no defense looks at the client's batches, which then need not be there in [0, 1], nor all at once."""
        defenses = self.experiment.clients.training(client).defenses
        return not any(hasattr(one.settings, hook) for one in defenses for hook in ("mix", "encode", "gradient"))

    def makes_gradients(self, client: int) -> bool:
        """Whether one of its defenses does, in the place of the client's own steps."""
        return self._maker(client) is not None

    def normalised(self, client: int, round_: int, steps: Sequence[Tensor]) -> Iterator[Batch]:
        """The batches of these steps, encoded and normalised."""
        if self.is_plain(client):
            yield from self._normalised(client, steps)
            return
        for batch in self._encoded(client, round_, steps).batches:
            yield Batch(self.federation.data.normalisation(batch.images), batch.labels)

    def steps(self, client: int, round_: int) -> list[Tensor]:
        """The positions of each step's images in the client's share. Raises ValueError for a client without data."""
        experiment, size = self.experiment, len(self.federation.shares[client])
        settings = experiment.clients.training(client)
        own, maker = torch.arange(size), self._maker(client)
        if maker is not None:
            plan = maker.plan
            steps = training.poisson_schedule(own, plan.rate, plan.steps, experiment.seed, round_, client)
        else:
            steps = training.schedule(own, settings, experiment.clients.algorithm, experiment.seed, round_, client)
        if not steps:
            raise ValueError(f"client {client} has no data")
        return steps

    def _normalised(self, client: int, steps: Sequence[Tensor]) -> Iterator[Batch]:
        for positions in steps:
            yield self.federation.normalised(client, positions)

    def _encoded(self, client: int, round_: int, steps: Sequence[Tensor]) -> _Work:
        experiment, settings = self.experiment, self.experiment.clients.training(client)
        batches, mixtures = [], []
        for step, positions in enumerate(steps):
            batch, mixed = self.federation.batch(client, positions), None
            for place, defense in enumerate(settings.defenses if len(positions) else ()):
                rng = seeding.generator(experiment.seed, "encode", round_, client, step, place)
                if hasattr(defense.settings, "mix"):
                    mixed = defense.settings.mix(batch, self._pool(client, positions), rng)
                    batch = mixed.batch
                elif hasattr(defense.settings, "encode"):
                    batch = defense.settings.encode(batch, rng)
            batches.append(batch)
            mixtures.append(mixed)
        return _Work(steps, batches, mixtures)

    def _shown(self, client: int, round_: int) -> Sequence[Batch]:
        """The batches that a perturbation may look at: none where a defense has made the gradients, which would
        otherwise have hidden in vain what is looked at again.
        """
        return () if self._maker(client) is not None else self._work(client, round_).batches

    def _seed_noise(self, client: int, round_: int) -> None:
        """Let a bottleneck's noise begin as it does in this client's round."""
        if self._noisy:
            precode.seed(self.model, seeding.generator(self.experiment.seed, "bottleneck", round_, client))

    def _maker(self, client: int) -> _Maker | None:
        if client not in self._makers:
            self._makers[client] = self._made(client)
        return self._makers[client]

    def _made(self, client: int) -> _Maker | None:
        experiment, size = self.experiment, len(self.federation.shares[client])
        settings = experiment.clients.training(client)
        for place, defense in enumerate(settings.defenses if size else ()):
            if hasattr(defense.settings, "gradient"):
                data = self.federation.data
                plan = Plan(
                    size,
                    min(settings.batch_size, size),
                    training.steps_of(size, settings, experiment.clients.algorithm),
                    experiment.rounds,
                    data.shape,
                    data.classes,
                    tuple(other.settings for position, other in enumerate(settings.defenses) if position != place),
                )
                return _Maker(defense.settings, place, plan)
        return None

    def _gradient(self, maker: _Maker, client: int, round_: int) -> training.Gradient:
        def gradient(step: int, batch: Batch, loss: Callable[[Batch], Tensor]) -> list[Tensor]:
            rng = seeding.generator(self.experiment.seed, "gradient", round_, client, step, maker.place)
            made: list[Tensor] = maker.settings.gradient(self.model, batch, maker.plan, loss, rng)
            return made

        return gradient

    def _pool(self, client: int, positions: Tensor) -> Pool:
        data = self.federation.data
        take = functools.partial(self.federation.batch, client)
        return Pool(len(self.federation.shares[client]), take, positions, data.classes, data.normalisation)


@functools.lru_cache(maxsize=2)
def workbench(experiment: Experiment) -> Workbench:
    """The workbench of this process for an experiment, made on first use."""
    return Workbench(experiment)
