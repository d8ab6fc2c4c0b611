"""The benchmark of secure aggregation at its smallest: all of its parts work, and what it measures is the protocol."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

import fedsim

FOLDER = Path(fedsim.__file__).parent.parent / "experiments" / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    if not FOLDER.exists():
        pytest.skip("installed without the benchmarks")
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("secure_aggregation")


def test_a_client_of_the_benchmark_adds_a_mask_for_each_neighbour_and_one_of_its_own(benchmark: Any) -> None:
    table = benchmark.client_cost(benchmark.QUICK)
    assert table.data["neighbours"] == benchmark.QUICK.clients - 1
    parts = table.data["parts"]
    assert f"{benchmark.QUICK.clients} masks" in parts
    assert all(seconds >= 0 for seconds in parts.values()) and table.data["total"] == pytest.approx(sum(parts.values()))


def test_the_server_of_the_benchmark_takes_off_all_masks_and_the_sum_is_right(benchmark: Any) -> None:
    (table,) = benchmark.server_cost(benchmark.QUICK)
    found, clients = table.data, benchmark.QUICK.clients
    gone = int(0.3 * clients)
    # Of each survivor its self mask, and of each that left a mask with each survivor, as all are neighbours of all.
    assert found["masks"] == (clients - gone) * (1 + gone)
    assert found["apart"] <= found["error_bound"] + 1e-8
    assert 0 < found["before"] <= found["peak"] < 2**31


def test_rounds_are_measured_under_every_mode_beside_plain_ones(benchmark: Any) -> None:
    table = benchmark.rounds_cost(benchmark.replace(benchmark.QUICK, rounds=1, small_clients=3))
    assert {"off", "ideal", "secagg+"} <= set(table.data["seconds"])
    assert table.data["to_plain"]["off"] == 1 and table.data["to_plain"]["secagg+"] > 0


def test_a_mask_is_measured_beside_flowers_own(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark.torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(sys, "argv", ["secure_aggregation.py", "--quick", "--parts", "masks"])
    assert benchmark.main() == 0
    shown = capsys.readouterr().out
    assert "Flower: mask, not added" in shown and "machine:" in shown
