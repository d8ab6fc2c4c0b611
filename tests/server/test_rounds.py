from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from torch import Tensor

from fedsim.clients.app import client_app
from fedsim.clients.workbench import workbench
from fedsim.experiment import Experiment
from fedsim.grids.flower_internals import from_record, to_record
from fedsim.grids.inline import InlineGrid
from fedsim.grids.watched import client_of
from fedsim.runs import RoundRecord
from fedsim.server.app import Rounds, server_app

Change = Callable[[Message], None]


def federate(experiment: Experiment, on_message: Change | None = None) -> tuple[list[RoundRecord], dict[str, Tensor]]:
    grid = InlineGrid(client_app(experiment), experiment.clients.count)
    if on_message:
        grid.watch(on_message)
    records: list[RoundRecord] = []
    context = Context(1, 0, {}, RecordDict(), {})
    server_app(experiment, records.append)(grid, context)
    return records, from_record(context.state["arrays"])  # type: ignore[arg-type]


def test_fedavg_is_the_mean_of_the_updates_weighted_by_examples(small: Any) -> None:
    experiment = small(rounds=1, clients={"batch_size": 500})
    updates: list[tuple[int, dict[str, Tensor]]] = []

    def note(message: Message) -> None:
        if message.metadata.dst_node_id == 0:
            content = message.content
            updates.append((content["metrics"]["num-examples"], from_record(content["update"])))  # type: ignore[index,arg-type,call-overload]

    start = Rounds(experiment).parameters
    _, final = federate(experiment, note)
    total = sum(count for count, _ in updates)
    assert total == len(workbench(experiment).federation.data.train)
    for name, value in start.items():
        mean = sum(count / total * update[name] for count, update in updates)
        torch.testing.assert_close(final[name], value - 0.1 * mean)


def test_training_learns(small: Any) -> None:
    records, _ = federate(
        small(
            rounds=15,
            clients={"algorithm": "fedavg", "learning_rate": 0.3, "batch_size": 16},
            server={"learning_rate": 1.0, "evaluate_every": 15},
        )
    )
    first, last = records[0].test_accuracy, records[-1].test_accuracy
    assert first is not None and last is not None
    assert first < 0.3
    assert last > 0.85
    assert [record.test_accuracy is not None for record in records] == [True] + [False] * 14 + [True]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(small: Any) -> None:
    import random

    random.seed(1)
    first, one = federate(small())
    random.seed(2)
    torch.manual_seed(99)
    again, two = federate(small())
    _, three = federate(small(seed=4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)
    assert [r.test_loss for r in first] == [r.test_loss for r in again]


def test_clients_are_drawn_by_the_seed(small: Any) -> None:
    records, _ = federate(small(rounds=6, clients={"per_round": 2}))
    drawn = [record.clients for record in records[1:]]
    assert all(len(clients) == 2 for clients in drawn)
    assert len(set(drawn)) > 1
    assert [record.clients for record in federate(small(rounds=6, clients={"per_round": 2}))[0][1:]] == drawn


def test_a_client_that_raises_is_a_dropout_and_the_others_count(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsim.clients.workbench import Workbench

    honest = Workbench.train

    def train(self: Workbench, client: int, *arguments: Any, **more: Any) -> Any:
        if client == 2:
            raise MemoryError("not enough")
        return honest(self, client, *arguments, **more)

    monkeypatch.setattr(Workbench, "train", train)
    records, _ = federate(small(rounds=1))
    assert records[1].clients == (0, 1, 3)
    (dropout,) = records[1].dropouts
    assert dropout.client == 2
    assert "MemoryError: not enough" in dropout.reason


def test_nan_from_a_client_leaves_the_rest_as_if_it_had_not_been_there(small: Any) -> None:
    def spoil(message: Message) -> None:
        if message.metadata.dst_node_id == 0 and client_of(message) == 1:
            update = from_record(message.content["update"])  # type: ignore[arg-type]
            message.content["update"] = to_record({name: value * float("nan") for name, value in update.items()})

    records, spoilt = federate(small(rounds=1), spoil)
    assert "holds NaN" in records[1].dropouts[0].reason
    assert torch.isfinite(torch.cat([value.flatten() for value in spoilt.values()])).all()
    assert records[1].clients == (0, 2, 3)


def test_too_few_survivors_skip_the_round_and_leave_the_model(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsim.clients.workbench import Workbench

    monkeypatch.setattr(Workbench, "train", lambda *a, **k: 1 / 0)
    experiment = small(rounds=1)
    records, final = federate(experiment)
    assert records[1].skipped is not None and "0 usable updates" in records[1].skipped
    assert len(records[1].dropouts) == 4
    start = Rounds(experiment).parameters
    assert all(torch.equal(start[name], final[name]) for name in start)


STRATEGIES = [
    "fedavg",
    "fedavgm",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
    "multikrum",
    "bulyan",
]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_of_flower_trains(small: Any, name: str) -> None:
    records, final = federate(
        small(
            rounds=3,
            clients={"count": 7, "algorithm": "fedavg", "learning_rate": 0.2, "batch_size": 16},
            server={"strategy": name, "learning_rate": 1.0, "evaluate_every": 3},
        )
    )
    assert all(record.skipped is None for record in records)
    assert all(value.dtype == torch.float32 for value in final.values())
    assert records[0].test_loss is not None and records[-1].test_loss is not None
    assert records[-1].test_loss < records[0].test_loss


def test_krum_takes_the_honest_update_also_when_updates_are_tiny_beside_the_weights(small: Any) -> None:
    """In float32 the distances would be lost in |a|^2 + |b|^2 - 2ab, and Krum's choice would be by rounding."""
    experiment = small(rounds=1, clients={"count": 5}, server={"strategy": {"name": "krum", "num_malicious_nodes": 1}})
    updates: dict[int, dict[str, Tensor]] = {}

    def shrink(message: Message) -> None:
        if message.metadata.dst_node_id == 0:
            client = client_of(message)
            value = {0: 1.0, 1: 1.1, 2: 1.2, 3: 1.3, 4: 90.0}[client] * 1e-4
            update = {n: torch.full_like(v, value) for n, v in from_record(message.content["update"]).items()}  # type: ignore[arg-type]
            updates[client] = update
            message.content["update"] = to_record(update)

    start = Rounds(experiment).parameters
    _, final = federate(experiment, shrink)
    name = next(iter(start))
    moved = (start[name] - final[name]).double().mean().item() / 0.1
    assert moved == pytest.approx(1.1e-4, rel=0.2) or moved == pytest.approx(1.2e-4, rel=0.05)


@pytest.mark.parametrize("policy", ["share_batch", "share_running", "local", "freeze", "group_norm"])
def test_every_batchnorm_policy_trains_and_sends_what_it_says(small: Any, policy: str) -> None:
    from fedsim import batchnorm

    experiment = small(
        rounds=2,
        data={"name": "digits"},
        model={"name": "resnet18"},
        clients={"count": 2, "batch_size": 4, "batchnorm": policy},
        server={"evaluate_every": 2},
    )
    sent: list[set[str]] = []
    broadcast: list[set[str]] = []

    def note(message: Message) -> None:
        held = set(message.content.get("buffers", {}))
        (sent if message.metadata.dst_node_id == 0 else broadcast).append(held)
        assert not any(
            "num_batches_tracked" in name for record in message.content.array_records.values() for name in record
        )

    records, _ = federate(experiment, note)
    model = workbench(experiment).model
    assert all(names == batchnorm.expected_keys(policy, model) for names in sent)
    assert all(bool(names) is (policy in ("share_batch", "share_running", "freeze")) for names in broadcast)
    assert all(not record.dropouts for record in records)
    assert records[-1].test_loss is not None


def test_a_local_client_keeps_its_own_statistics(small: Any) -> None:
    experiment = small(
        rounds=2, model={"name": "resnet18"}, clients={"count": 2, "batch_size": 4, "batchnorm": "local"}
    )
    grid = InlineGrid(client_app(experiment), 2)
    server_app(experiment, lambda record: None)(grid, Context(1, 0, {}, RecordDict(), {}))
    one, two = (from_record(grid.contexts[node].state["buffers"]) for node in (1, 2))  # type: ignore[arg-type]
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_with_a_rate_of_zero_every_round_shows_the_same_model(small: Any) -> None:
    experiment = small(rounds=3, server={"learning_rate": 0.0}, clients={"batches": "in_order"})
    start = Rounds(experiment).parameters
    _, final = federate(experiment)
    assert all(torch.equal(start[name], final[name]) for name in start)


def test_after_a_milestone_the_step_is_smaller(small: Any) -> None:
    moved = {}
    for name, server in (
        ("plain", {"learning_rate": 0.1}),
        ("dropped", {"learning_rate": 0.1, "milestones": [1], "gamma": 0.5}),
        ("second", {"learning_rate": 0.05}),
    ):
        experiment = small(rounds=2 if name != "second" else 1, server=server, clients={"count": 1})
        models: list[dict[str, Tensor]] = []
        grid = InlineGrid(client_app(experiment), 1)
        Rounds(experiment).run(grid, lambda record: None, lambda n, p, r, kept=models: kept.append(dict(p)))  # type: ignore[misc]
        moved[name] = models
    first = {name: moved["plain"][1][name] - moved["dropped"][1][name] for name in moved["plain"][1]}
    assert all(not value.any() for value in first.values())
    for name, value in moved["plain"][2].items():
        whole, half = value - moved["plain"][1][name], moved["dropped"][2][name] - moved["dropped"][1][name]
        torch.testing.assert_close(half, whole / 2, atol=1e-7, rtol=1e-4)


def test_without_evaluation_nothing_is_tested(small: Any) -> None:
    records, _ = federate(small(server={"evaluate_every": 0}))
    assert [record.test_accuracy for record in records] == [None, None, None]
