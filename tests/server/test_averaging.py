"""The mean on tensors is Flower's, bit for bit."""

from __future__ import annotations

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsim import protocol
from fedsim.grids.flower_internals import from_record, take_identity, to_record
from fedsim.server.averaging import TensorFedAvg
from fedsim.server.strategies import FedAvg as Settings


def replies(count: int, seed: int) -> list[Message]:
    take_identity(1)
    rng = torch.Generator().manual_seed(seed)
    out = []
    for client in range(count):
        tensors = {"w": torch.randn(17, 5, generator=rng), "b": 1e-3 * torch.randn(5, generator=rng)}
        tensors["zero"] = torch.zeros(0, 3)
        numbers = MetricRecord({protocol.NUM_EXAMPLES: int(torch.randint(1, 1000, (), generator=rng))})
        content = RecordDict({protocol.ARRAYS: to_record(tensors), protocol.METRICS: numbers})
        out.append(Message(content, dst_node_id=client + 1, message_type="train"))
    return out


@pytest.mark.parametrize("count", [1, 2, 7, 50])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_flowers_mean(count: int, seed: int) -> None:
    settings = {"fraction_train": 1.0, "min_train_nodes": 1, "min_available_nodes": 1}
    ours, _ = TensorFedAvg(**settings).aggregate_train(1, replies(count, seed))  # type: ignore[arg-type]
    theirs, _ = FedAvg(**settings).aggregate_train(1, replies(count, seed))  # type: ignore[arg-type]
    assert ours is not None and theirs is not None
    mine, other = from_record(ours), from_record(theirs)
    assert list(mine) == list(other)
    for name in mine:
        assert mine[name].dtype == other[name].dtype
        assert torch.equal(mine[name], other[name])


def test_the_replies_are_left_as_they_were() -> None:
    sent = replies(3, 0)
    before = [from_record(one.content[protocol.ARRAYS])["w"].clone() for one in sent]  # type: ignore[arg-type]
    TensorFedAvg().aggregate_train(1, sent)
    for one, was in zip(sent, before, strict=True):
        assert torch.equal(from_record(one.content[protocol.ARRAYS])["w"], was)  # type: ignore[arg-type]


def test_of_nothing_there_is_no_mean() -> None:
    assert TensorFedAvg().aggregate_train(1, []) == (None, None)


def test_it_is_what_fedavg_builds() -> None:
    assert type(Settings().build()) is TensorFedAvg
