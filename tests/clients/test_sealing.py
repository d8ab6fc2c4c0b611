"""The client's app around its half of a secure aggregation: one round once, and a refusal changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Context, Message

import fedsim.grids.flower_internals as flower
from fedsim import protocol
from fedsim.clients import sealing
from fedsim.clients.app import client_app
from fedsim.clients.workbench import Workbench
from fedsim.grids.inline import InlineGrid
from fedsim.grids.watched import client_at
from fedsim.protocol import Update
from fedsim.runs import RoundRecord
from fedsim.server.app import Rounds


def test_a_round_that_is_asked_for_again_is_refused_and_changes_nothing(small: Any) -> None:
    """With `local` a client's own statistics move whenever it trains."""
    experiment = small(
        model={"name": "tiny_batchnorm"},
        clients={"algorithm": "fedavg", "local_steps": 2, "batchnorm": "local"},
        server={"learning_rate": 1.0, "secure_aggregation": "ideal"},
    )
    grid, rounds = InlineGrid(client_app(experiment), 4), Rounds(experiment)
    request = rounds._requests(1, grid)[0]
    (first,) = grid.send_and_receive([request])
    assert not first.has_error()
    state = grid.contexts[1].state
    before = {name: value.clone() for name, value in flower.tensors_in(state, protocol.BUFFERS).items()}
    (second,) = grid.send_and_receive([request])
    assert "takes part in a round once" in str(second.error.reason)
    after = flower.tensors_in(state, protocol.BUFFERS)
    assert before and all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("leaves", [False, True])
def test_a_client_that_is_out_of_the_round_forgets_its_secrets(
    small: Any, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    """It leaves before its update, or its update cannot be summed."""
    experiment = small(rounds=1, server={"secure_aggregation": "secagg+"})
    grid, held = InlineGrid(client_app(experiment), 4), []

    def at_training(message: Message) -> None:
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == 2:
            held.append(dict(grid.contexts[2].state[sealing._MEMORY]))

    grid.watch(at_training)
    honest = Workbench.perturb

    def perturb(self: Workbench, update: Update, client: int, *rest: Any) -> Any:
        bad = client == 1 and not leaves
        return honest(self, update.map(lambda value: value * float("nan")) if bad else update, client, *rest)

    def leave(made: Any, client: int, round_: int, stage: str, context: Context) -> None:
        if leaves and (client, stage) == (1, "update"):
            honest_leave(
                replace(made, clients=replace(made.clients, dropout=1 - 1e-12)), client, round_, stage, context
            )

    honest_leave = sealing.leave
    monkeypatch.setattr(Workbench, "perturb", perturb)
    monkeypatch.setattr(sealing, "leave", leave)
    records: list[RoundRecord] = []
    Rounds(experiment).run(grid, records.append)
    assert held and held[0], "it held secrets when it was asked to train"
    assert [one.client for one in records[-1].dropouts] == [1]
    assert not grid.contexts[2].state[sealing._MEMORY]


@pytest.mark.parametrize("node", [1, 2, 2**63 - 1, 2**63, 2**64 - 1])
def test_every_node_has_a_client_that_a_record_can_name(node: int) -> None:
    assert 0 <= client_at(node) < 2**63
    assert client_at(5) == 4
