"""The Flower ServerApp: a short round loop around any of Flower's strategies.

Flower's own `Strategy.start` cannot resume, draws clients from the global random state and averages whatever it is
sent; this loop asks the strategy to configure and to aggregate, and does the rest itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

import fedsim.grids.flower_internals as flower
from fedsim import batchnorm, protocol, seeding
from fedsim.data.federation import load_federation
from fedsim.devices import choose_device
from fedsim.errors import FedsimError
from fedsim.experiment import Experiment
from fedsim.failpoints import reach
from fedsim.grids.deployment import experiment_of
from fedsim.models.initial import initial_model
from fedsim.runs import RoundRecord
from fedsim.secagg.terms import terms_of
from fedsim.server.collecting import Broadcast, Collected, OnTotal, SecureCollector, collect
from fedsim.server.edge import as_weights
from fedsim.server.evaluation import evaluate
from fedsim.server.strategy_state import put_back, state_of

OnRound = Callable[[RoundRecord], None]
OnModel = Callable[[int, Mapping[str, Tensor], Mapping[str, Tensor]], None]
"""Gets the round (0: before the first), the global parameters and the running statistics."""
OnEnd = Callable[["Rounds"], None]
"""Gets the server's state, before the first round or when one is over, with all that was to be said of it said."""


class Rounds:
    """The server's state over the rounds of an experiment: global parameters, running statistics and the strategy.

    done: the last round that is over; -1 before the initial model has been looked at.
    """

    def __init__(self, experiment: Experiment, on_total: OnTotal | None = None) -> None:
        self.experiment = experiment
        self.policy = experiment.clients.batchnorm
        federation = load_federation(
            experiment.data.dataset.settings,
            experiment.data.partition.settings,
            experiment.clients.count,
            experiment.seed,
        )
        self.data = federation.data
        self.model = initial_model(experiment, self.data).to(choose_device(experiment.runtime.device))
        self.parameters: dict[str, Tensor] = {
            name: value.detach().cpu().clone() for name, value in self.model.named_parameters()
        }
        self.running = batchnorm.statistics(self.model)
        self.buffer_shapes = batchnorm.expected_shapes(self.policy, self.model)
        self.done = -1
        self.strategy = experiment.server.strategy.settings.build()
        mode = experiment.server.secure_aggregation
        self._secure: SecureCollector | None = None
        if mode is not None:
            terms = terms_of(experiment, federation, self.model)
            self._secure = SecureCollector(mode, terms, experiment.server.min_clients, on_total)
        # Epsilon and delta of each client that trains privately, as it last said.
        self._spent: dict[int, tuple[float, float]] = {}

    def run(self, grid: Grid, on_round: OnRound, on_model: OnModel | None = None, on_end: OnEnd | None = None) -> None:
        """All rounds that are not done. `on_round` gets a record after each, and one for round 0: the initial model."""
        for number in range(self.done + 1, self.experiment.rounds + 1):
            record = self._round(number, grid) if number else self._before()
            self.done = number
            on_round(record)
            if on_model is not None:
                on_model(number, self.parameters, self.running)
            if on_end is not None:
                on_end(self)

    def state(self) -> dict[str, Any]:
        """All that the rounds to come depend on, besides the experiment: plain data, tensors and Flower's records."""
        return {
            "done": self.done,
            "parameters": self.parameters,
            "running": self.running,
            "strategy": state_of(self.strategy, self.experiment.server.strategy.settings.build()),
            "spent": self._spent,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.done = state["done"]
        self.parameters = {name: state["parameters"][name] for name in self.parameters}
        self.running = {name: state["running"][name] for name in self.running}
        put_back(self.strategy, state["strategy"])
        self._spent = dict(state["spent"])

    def _before(self) -> RoundRecord:
        record = RoundRecord(0)
        if self.experiment.server.evaluate_every:
            record.test_loss, record.test_accuracy = self._test()
        return record

    def _round(self, number: int, grid: Grid) -> RoundRecord:
        start = time.perf_counter()
        messages = self._requests(number, grid)
        reach("round.asked")
        sent = Broadcast(self.parameters, batchnorm.broadcast(self.policy, self.running), self.buffer_shapes)
        if self._secure is None:
            collected = collect(grid, messages, sent)
        else:
            collected = self._secure.collect(number, grid, messages, sent)
        reach("round.collected")
        record = RoundRecord(
            number,
            clients=collected.clients,
            dropouts=tuple(collected.dropouts),
            train_loss=collected.train_loss,
            skipped=self._aggregate(number, collected),
            secure=collected.secure,
        )
        reach("round.aggregated")
        self._spent.update(collected.spent)
        if self._spent:
            record.epsilons = {client: epsilon for client, (epsilon, _) in sorted(self._spent.items())}
            record.epsilon, record.delta = max(self._spent.values())
        every = self.experiment.server.evaluate_every
        if every and (number == self.experiment.rounds or number % every == 0):
            record.test_loss, record.test_accuracy = self._test()
        record.seconds = time.perf_counter() - start
        return record

    def _requests(self, number: int, grid: Grid) -> list[Message]:
        nodes = sorted(grid.get_node_ids())
        wanted = self.experiment.clients.per_round or len(nodes)
        order = torch.randperm(len(nodes), generator=seeding.generator(self.experiment.seed, "sampling", number))
        chosen = _Roster(sorted(nodes[i] for i in order[:wanted].tolist()))
        messages = self.strategy.configure_train(
            number, flower.to_record(self.parameters), ConfigRecord(), cast(Grid, chosen)
        )
        statistics = batchnorm.broadcast(self.policy, self.running)
        out = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        for message in out:
            message.metadata.group_id = str(number)
            if statistics:
                message.content[protocol.BUFFERS] = flower.to_record(statistics)
        return out

    def _aggregate(self, number: int, collected: Collected) -> str | None:
        """Move the global model. On failure leave it as it was and say why."""
        if collected.closed is not None:
            return f"{collected.closed}; the model stays as it was"
        least, admitted = self.experiment.server.min_clients, collected.replies
        if len(collected.clients) < max(least, 1):
            return f"{len(collected.clients)} usable updates, {max(least, 1)} required; the model stays as it was"
        double = self.experiment.server.strategy.settings.double_precision
        rate = self._rate(number)
        if rate == 0:
            return None
        weights = [as_weights(reply, self.parameters, rate, double=double) for reply in admitted]
        try:
            arrays, _ = self.strategy.aggregate_train(number, weights)
        except Exception as error:
            raise FedsimError(
                f"round {number}: strategy '{self.experiment.server.strategy.name}' failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        if arrays is None:
            return "the strategy made no aggregate of these updates; the model stays as it was"
        new = {name: value.to(torch.float32) for name, value in flower.from_record(arrays).items()}
        bad = [name for name, value in new.items() if not torch.isfinite(value).all()]
        if bad:
            return (
                f"the aggregate of {bad[0]} is not finite; the model stays as it was (a lower learning rate may help)"
            )
        self.parameters = {name: new[name] for name in self.parameters}
        self.running = batchnorm.aggregate(
            self.policy,
            self.running,
            [reply.buffers for reply in admitted],
            [reply.examples for reply in admitted],
            [reply.steps for reply in admitted],
        )
        return None

    def _rate(self, number: int) -> float:
        """The server's learning rate in a round."""
        server = self.experiment.server
        return server.learning_rate * server.gamma ** sum(number > step for step in server.milestones)

    def _test(self) -> tuple[float, float]:
        return evaluate(self.model, self.parameters, self.running, self.policy, self.data)


class _Roster:
    """The part of a Grid that a strategy's `configure_train` uses: only the clients drawn for this round are there."""

    def __init__(self, nodes: list[int]) -> None:
        self._nodes = nodes

    def get_node_ids(self) -> Iterable[int]:
        return self._nodes


def server_app(
    experiment: Experiment | None = None,
    on_round: OnRound | None = None,
    on_model: OnModel | None = None,
    on_total: OnTotal | None = None,
    on_begin: OnEnd | None = None,
    on_end: OnEnd | None = None,
) -> ServerApp:
    """A ServerApp that runs the experiment; the final model is left in `context.state["arrays"]`.

    on_total: gets what a secure aggregation tells the server in each round. on_begin: may restore an earlier state.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        rounds = Rounds(experiment or experiment_of(context), on_total)
        if on_begin is not None:
            on_begin(rounds)
        rounds.run(grid, on_round or _print_round, on_model, on_end)
        context.state[protocol.ARRAYS] = flower.to_record(rounds.parameters)
        if rounds.running:
            context.state[protocol.BUFFERS] = flower.to_record(rounds.running)

    return app


def _print_round(record: RoundRecord) -> None:
    print(record.line(), flush=True)


app = server_app()
