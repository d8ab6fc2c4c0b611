"""The client's app around its half of a secure aggregation: one round once, and a refusal changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fedsim.grids.flower_internals as flower
from fedsim import protocol
from fedsim.clients.app import client_app
from fedsim.grids.inline import InlineGrid, client_at
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


@pytest.mark.parametrize("node", [1, 2, 2**63 - 1, 2**63, 2**64 - 1])
def test_every_node_has_a_client_that_a_record_can_name(node: int) -> None:
    assert 0 <= client_at(node) < 2**63
    assert client_at(5) == 4
