"""Values become JSON data and tensors, and come back bit for bit."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

import fedsim.grids.flower_internals as flower
from fedsim.errors import FedsimError
from fedsim.states import chance
from fedsim.states.words import meant, told


def again(value: Any) -> Any:
    """The value after it was written down and read."""
    tensors: dict[str, torch.Tensor] = {}
    return meant(json.loads(json.dumps(told(value, tensors, "x"), allow_nan=False, sort_keys=True)), tensors)


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -(2**70), 0.1, math.inf, -math.inf, 5e-324, "", "~float", "x\ud800".encode("utf-8", "replace"),
        b"\x00\xff", [], [1, [2.5, None]], (), (1, ("a",)), {}, {"a": 1, "~bytes": 2}, {1: "one", -1: "minus"}, {3, 1},
        {"~tensor": "x"}, [{"~array": []}],
    ],
)  # fmt: skip
def test_plain_values_come_back(value: Any) -> None:
    found = again(value)
    assert found == value
    assert type(found) is type(value)


def test_nan_comes_back() -> None:
    assert math.isnan(again(math.nan))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_tensors_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    value = torch.tensor([[0.0, -0.0, 1.5], [3.25, 7, -2]]).to(dtype)
    found = again({"a": value})["a"]
    assert found.dtype == dtype
    assert found.shape == value.shape
    assert torch.equal(found.view(torch.uint8), value.view(torch.uint8))


@pytest.mark.parametrize(
    "value", [np.arange(6, dtype=np.float64).reshape(2, 3), np.array(2.5), np.zeros((0, 3), np.int32)]
)
def test_arrays_come_back(value: np.ndarray) -> None:
    found = again([value])[0]
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.shape) == (value.dtype, value.shape)
    assert np.array_equal(found, value)


def test_numbers_of_numpy_come_back_in_their_type() -> None:
    found = again(np.float32(0.1))
    assert isinstance(found, np.float32)
    assert found == np.float32(0.1)


def test_places_that_are_written_alike_are_kept_apart() -> None:
    found = again({"a/b": torch.tensor(1), "a": {"b": torch.tensor(2)}, 1: torch.tensor(3), "1": np.array(4)})
    assert [int(one) for one in (found["a/b"], found["a"]["b"], found[1], found["1"])] == [1, 2, 3, 4]


def test_records_come_back_in_their_order_and_types() -> None:
    content = RecordDict(
        {
            "b": flower.to_record({"w": torch.randn(3, 2), "a": torch.tensor([1, 2])}),
            "a": MetricRecord({"n": 3, "loss": 0.1, "many": [1.0, 2.0]}),
            "c": ConfigRecord({"key": b"\x00\x01", "on": True, "name": "x", "all": [b"1", b"2"]}),
        }
    )
    found = again(content)
    assert list(found) == ["b", "a", "c"]
    assert [type(record) for record in found.values()] == [ArrayRecord, MetricRecord, ConfigRecord]
    assert list(found["b"]) == ["w", "a"]
    for name in ("w", "a"):
        assert torch.equal(flower.from_record(found["b"])[name], flower.from_record(content["b"])[name])
    assert dict(found["a"]) == dict(content["a"])
    assert dict(found["c"]) == dict(content["c"])
    assert isinstance(found["a"]["n"], int)


def test_the_global_generators_go_on_where_they_were() -> None:
    state = again(chance.global_generators())
    first = (random.random(), np.random.rand(), float(torch.rand(())))
    chance.restore(state)
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == first


@pytest.mark.parametrize("value", [object(), lambda: 0, {"a": [object()]}, {1.5: 0}, {b"k": 0}])
def test_what_cannot_be_held_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(FedsimError, match="a checkpoint cannot hold"):
        told(value, {}, "server")


def test_a_word_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no word 'pickle'"):
        meant({"~pickle": ""}, {})
