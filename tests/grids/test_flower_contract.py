"""The private parts of Flower that fedsim leans on. A red test here after an upgrade of flwr says what changed."""

from __future__ import annotations

import inspect

import flwr.app
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedsim.grids import flower_internals as flower


def test_a_message_needs_the_identity_and_takes_it() -> None:
    flower.take_identity(7)
    message = Message(RecordDict(), dst_node_id=3, message_type="train")
    assert (message.metadata.run_id, message.metadata.src_node_id, message.metadata.dst_node_id) == (7, 0, 3)
    assert {"run_id", "node_id", "task_id"} <= set(dir(type(TaskIdentity)))


def test_message_ids_can_be_set_and_are_what_a_reply_refers_to() -> None:
    flower.take_identity(1)
    message = Message(RecordDict(), dst_node_id=3, message_type="train")
    flower.set_message_id(message, "abc")
    assert message.metadata.message_id == "abc"
    assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == "abc"


def test_an_empty_run_has_the_id() -> None:
    run = flower.empty_run(5)
    assert isinstance(run, Run)
    assert run.run_id == 5


def test_the_grid_interface_is_the_one_we_implement() -> None:
    assert Grid.__abstractmethods__ == {
        "set_run",
        "run",
        "create_message",
        "get_node_ids",
        "push_messages",
        "pull_messages",
        "send_and_receive",
    }


def test_the_fields_of_array_are_those_that_tensorarray_stands_in_for() -> None:
    assert list(inspect.get_annotations(Array)) == ["dtype", "shape", "stype", "data"]


@pytest.mark.parametrize("tensor", [torch.randn(3, 4), torch.tensor(2.5), torch.arange(5), torch.zeros(0, 2)])
def test_a_tensor_array_is_flowers_array_of_the_same_tensor(tensor: torch.Tensor) -> None:
    ours, theirs = flower.TensorArray(tensor), Array(tensor.numpy())
    assert (ours.dtype, ours.shape, ours.stype, ours.data) == (theirs.dtype, theirs.shape, theirs.stype, theirs.data)
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert ours.object_id == theirs.object_id


def test_a_tensor_array_survives_flowers_own_serialisation() -> None:
    record = flower.to_record({"w": torch.randn(2, 3)})
    copied = ArrayRecord(dict(record))
    assert type(copied["w"]) is Array
    torch.testing.assert_close(flower.from_record(copied)["w"], flower.from_record(record)["w"], rtol=0, atol=0)


def test_nobody_writes_through_the_numpy_view() -> None:
    values = flower.TensorArray(torch.zeros(3)).numpy()
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 1.0


def test_environment_is_set_before_flower() -> None:
    import os

    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert flwr.app.Message is Message


def test_a_record_filled_at_once_is_the_one_that_flower_fills() -> None:
    tensors = {"w": torch.randn(2, 3), "b": torch.randn(3)}
    theirs = ArrayRecord()
    for name, tensor in tensors.items():
        theirs[name] = flower.TensorArray(tensor)
    ours = flower.to_record(tensors)
    assert ours == theirs
    # Flower takes a record that does not say it for one that has changed.
    assert theirs.__dict__.keys() - {"_is_dirty"} == ours.__dict__.keys()
    assert ours.is_dirty
    assert ours.object_id == theirs.object_id
    with pytest.raises(TypeError):
        ours["other"] = 1  # type: ignore[assignment]
