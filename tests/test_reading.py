"""Tensors out of a message: what does not fit is told by its record and name, by whichever end reads it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import Array, ConfigRecord, MetricRecord, RecordDict

from fedsim.clients.requests import TrainRequest, round_of
from fedsim.errors import ProtocolError
from fedsim.grids.flower_internals import to_record
from fedsim.reading import LARGEST, read_tensors
from fedsim.server.app import Rounds

SHAPES = {"w": (2, 2), "b": (3,), "none": (0,), "one": ()}


def content(**changes: torch.Tensor) -> RecordDict:
    tensors = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    return RecordDict({"x": to_record({**tensors, **changes})})


def test_what_fits_is_read_in_the_order_that_is_asked_for() -> None:
    found = read_tensors(content(w=torch.full((2, 2), -LARGEST / 2)), "x", dict(reversed(SHAPES.items())))
    assert list(found) == list(reversed(SHAPES))
    assert torch.equal(found["w"], torch.full((2, 2), -LARGEST / 2))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"v": torch.ones(1)}, "x/v is not a name"),
        ({"b": torch.ones(2)}, r"x/b has shape \(2,\), not \(3,\)"),
        ({"one": torch.ones(1)}, r"x/one has shape \(1,\), not \(\)"),
        ({"b": torch.ones(3).double()}, "x/b has type torch.float64"),
        ({"b": torch.ones(3).int()}, "x/b has type torch.int32"),
        ({"b": torch.tensor([1, float("nan"), 1])}, "x/b holds NaN"),
        ({"w": torch.tensor([[1, -float("inf")], [0, 0]])}, "x/w holds Inf"),
        ({"one": torch.tensor(-2e18)}, r"x/one holds 2e\+18"),
    ],
)
def test_what_does_not_fit_is_told_by_its_name(changes: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        read_tensors(content(**changes), "x", SHAPES)


def test_what_is_missing_or_cannot_be_read_is_told() -> None:
    with pytest.raises(ProtocolError, match="record 'y' is missing"):
        read_tensors(content(), "y", SHAPES)
    with pytest.raises(ProtocolError, match="record 'x' is missing"):
        read_tensors(RecordDict({"x": MetricRecord()}), "x", SHAPES)
    held = content()
    del held["x"]["b"]  # type: ignore[union-attr]
    with pytest.raises(ProtocolError, match="x/b is missing"):
        read_tensors(held, "x", SHAPES)
    held["x"]["b"] = Array("float32", (3,), "numpy.ndarray", b"junk")  # type: ignore[index,call-overload,assignment]
    with pytest.raises(ProtocolError, match="x/b cannot be read as an array"):
        read_tensors(held, "x", SHAPES)


# --- train requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["share_running", "local"])
def test_a_train_request_holds_the_model_and_what_the_policy_has_the_server_send(policy: str, small: Any) -> None:
    experiment = small(model={"name": "tiny_batchnorm"}, clients={"batchnorm": policy})
    rounds = Rounds(experiment)
    held = RecordDict({"arrays": to_record(rounds.parameters), "config": ConfigRecord({"server-round": 2})})
    if policy == "local":
        request = TrainRequest.read(held, experiment)
        assert request.round == 2 and request.parameters.keys() == rounds.parameters.keys() and not request.statistics
    else:
        with pytest.raises(ProtocolError, match="record 'buffers' is missing"):
            TrainRequest.read(held, experiment)
    held["buffers"] = to_record(rounds.running)
    if policy == "local":
        with pytest.raises(ProtocolError, match=r"buffers/norm1.running_mean is not a name"):
            TrainRequest.read(held, experiment)
    else:
        assert TrainRequest.read(held, experiment).statistics.keys() == rounds.running.keys()


@pytest.mark.parametrize("number", [0, -1, True, 1.0, "1", b"1", [1], float("nan")])
def test_a_round_is_a_whole_number_from_one_on(number: Any) -> None:
    with pytest.raises(ProtocolError, match="settings/server-round is not the number of a round"):
        round_of(RecordDict({"settings": ConfigRecord({"server-round": number})}))


def test_a_request_without_a_round_is_refused() -> None:
    for held in (RecordDict(), RecordDict({"secagg": ConfigRecord({"server-round": 1}), "x": MetricRecord()})):
        with pytest.raises(ProtocolError, match="that holds 'server-round' is missing"):
            round_of(held)
