"""Clients in workers of a Ray cluster: the bits of the inline grid, for any number of workers and whatever dies."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray_apps
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fedsim.clients.app import client_app
from fedsim.cluster.connecting import Cluster, connected
from fedsim.cluster.sizing import Size
from fedsim.errors import FedsimError, InputError
from fedsim.experiment import Experiment
from fedsim.grids import plain
from fedsim.grids.flower_internals import to_record
from fedsim.grids.inline import InlineGrid
from fedsim.grids.ray import RayGrid
from fedsim.grids.watched import WatchedGrid
from fedsim.server.app import Rounds

pytest.importorskip("ray", reason="needs pip install 'fedsim-adversarial[ray]'")

Make = Callable[..., Experiment]
HALF = Size(cpus=0.5)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        # Workers import what their app is made by.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        with connected("local", cpus=8) as there:
            yield there


@pytest.fixture(scope="module")
def remembering(cluster: Cluster) -> Iterator[RayGrid]:
    grid = RayGrid(cluster, ray_apps.remembering, 6, size=Size(cpus=0.5, workers=2), warn=print)
    yield grid
    grid.close()


@pytest.fixture
def grid_of(cluster: Cluster) -> Iterator[Callable[..., RayGrid]]:
    grids = []

    def make(app: Callable[[], Any], clients: int, workers: int = 2, **more: Any) -> RayGrid:
        more = {"warn": lambda text: None, **more}
        grids.append(RayGrid(cluster, app, clients, size=Size(cpus=0.5, workers=workers), **more))
        return grids[-1]

    yield make
    for grid in grids:
        grid.close()


def bits(records: RecordDict) -> Any:
    """Everything in records, to the bit; arrays as type, shape and bytes."""

    def plainly(one: Any) -> Any:
        if not hasattr(one, "stype"):
            return one
        values = plain.pack_array(one)[-1]
        return one.dtype, tuple(one.shape), values if isinstance(values, bytes) else values.tobytes()

    return {
        name: (type(record).__name__, {key: plainly(value) for key, value in record.items()})
        for name, record in records.items()
    }


def said(message: Message) -> Any:
    meta = message.metadata
    facts = (meta.message_id, meta.src_node_id, meta.dst_node_id, meta.reply_to_message_id, meta.group_id, meta.run_id)
    return facts, message.error.reason if message.has_error() else bits(message.content)


def broadcast(nodes: list[int], content: RecordDict | None = None, round_: int = 1) -> list[Message]:
    content = content or RecordDict({"arrays": to_record({"w": torch.randn(300, generator=torch.Generator())})})
    return [Message(content, dst_node_id=node, message_type="train", group_id=str(round_)) for node in nodes]


def rounds_on(grid: WatchedGrid, experiment: Experiment) -> tuple[Any, ...]:
    """Parameters, running statistics, the lines of the rounds, and what clients remember."""
    rounds, lines = Rounds(experiment), []
    rounds.run(grid, lambda record: lines.append({**record.as_json(), "seconds": 0}))
    kept = {node: bits(context.state) for node, context in grid.contexts.items()}
    return (
        {name: value.numpy().tobytes() for name, value in rounds.parameters.items()},
        {name: value.numpy().tobytes() for name, value in rounds.running.items()},
        lines,
        {node: {name: one for name, one in state.items() if "secure" not in name} for node, state in kept.items()},
    )


CASES: dict[str, dict[str, Any]] = {
    "fedavg": {"clients": {"algorithm": "fedavg", "local_epochs": 1, "batch_size": 64}},
    "batchnorm local": {"model": {"name": "tiny_batchnorm"}, "clients": {"batchnorm": "local"}},
    "a defense with memory": {"clients": {"defenses": [{"name": "random_sparsification", "ratio": 0.9}]}},
    "secagg+": {"server": {"secure_aggregation": "secagg+"}},
}


@pytest.fixture(scope="module")
def playing(cluster: Cluster) -> Iterator[Callable[[Mapping[str, Experiment]], Mapping[int, RayGrid]]]:
    """Grids with 1, 2 and 4 workers, each for the clients of all experiments."""
    grids: dict[int, RayGrid] = {}

    def of(experiments: Mapping[str, Experiment]) -> Mapping[int, RayGrid]:
        app = functools.partial(ray_apps.several, experiments)
        for workers in () if grids else (1, 2, 4):
            grids[workers] = RayGrid(cluster, app, 4, size=Size(cpus=0.5, workers=workers), warn=print)
        return grids

    yield of
    for grid in grids.values():
        grid.close()


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_those_of_the_inline_grid(
    case: str, workers: int, small: Make, playing: Callable[[Mapping[str, Experiment]], Mapping[int, RayGrid]]
) -> None:
    grid, experiment = playing({one: small(**CASES[one]) for one in CASES})[workers], small(**CASES[case])
    inline = rounds_on(InlineGrid(client_app(experiment), 4), experiment)
    assert len(inline[2]) == 3
    assert inline[2][2]["clients"] == (0, 1, 2, 3)
    grid.contexts = InlineGrid(client_app(experiment), 4).contexts
    for context in grid.contexts.values():
        context.node_config["case"] = case
    assert grid.pool.count == workers
    assert rounds_on(grid, experiment) == inline


def test_states_errors_and_observers_are_as_inline(grid_of: Callable[..., RayGrid]) -> None:
    """All three kinds of state, two messages to one client at a time, a node that is not there, altered messages."""
    told: list[str] = []
    seen: dict[str, list[Any]] = {}
    replied: dict[str, list[Any]] = {}
    states: dict[str, Any] = {}

    def alter(message: Message) -> None:
        if message.metadata.dst_node_id == 4:
            message.content["arrays"] = to_record({"w": torch.ones(3)})

    grids: dict[str, WatchedGrid] = {
        "inline": InlineGrid(ray_apps.remembering(), 5),
        "ray": grid_of(ray_apps.remembering, 5, warn=told.append),
    }
    for name, grid in grids.items():
        shown: list[Any] = []
        grid.let_alter(alter)
        # With what the client remembered at that moment: contexts change before a reply is shown.
        grid.watch(lambda m, g=grid, s=shown: s.append((said(m), bits(g.contexts[m.metadata.src_node_id].state)))
                   if m.metadata.src_node_id in g.contexts else s.append((said(m), None)))  # fmt: skip
        values = to_record({"w": torch.arange(5) / 7})
        replied[name] = []
        for round_ in (1, 2):
            content = RecordDict({"arrays": values, "config": ConfigRecord({"server-round": round_})})
            out = grid.send_and_receive(broadcast([1, 2, 3, 4, 5, 9, 3], content, round_))
            replied[name] += map(said, out)
        seen[name] = shown
        states[name] = {node: bits(context.state) for node, context in grid.contexts.items()}
    assert replied["ray"] == replied["inline"]
    assert "no memory left at call 1" in replied["ray"][1][1]
    assert "there is no node 9" in replied["ray"][5][1]
    assert states["ray"] == states["inline"]
    assert states["ray"][3]["numbers"][1]["calls"] == 4
    for half in (lambda entry: entry[0][0][1] == 0, lambda entry: entry[0][0][1] != 0):
        assert list(filter(half, seen["ray"])) == list(filter(half, seen["inline"]))
    assert len([text for text in told if "UserWarning: this client is tired" in text]) == 1, told
    assert len([text for text in told if "and so is its library" in text]) == 1
    assert all(text.startswith("client worker ") for text in told)


def test_replies_come_one_by_one_in_the_order_of_asking(remembering: RayGrid) -> None:
    grid = remembering
    ids = list(grid.push_messages(broadcast([1, 3, 4, 5, 6])))
    backwards = ids[::-1]
    replies = grid.pull_messages([*backwards, "unknown"])
    assert next(iter(replies)).metadata.reply_to_message_id == backwards[0]
    assert not grid.contexts[1].state
    assert [reply.metadata.reply_to_message_id for reply in replies] == backwards[1:]
    assert not list(grid.pull_messages(ids))


def test_what_many_messages_have_is_stored_once_a_round(remembering: RayGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = remembering
    grid.contexts = InlineGrid(ray_apps.remembering(), 6).contexts  # nobody remembers anything
    put: list[int] = []
    real = grid.pool.put
    monkeypatch.setattr(grid.pool, "put", lambda arrays: put.append(len(arrays)) or real(arrays))  # type: ignore[func-returns-value]
    packed: list[plain.Place] = []
    content = RecordDict({"arrays": to_record({"w": torch.ones(4), "v": torch.ones(2)})})

    def alter(message: Message) -> None:
        if message.metadata.dst_node_id == 3:
            message.content["arrays"] = to_record({"w": torch.zeros(4)})

    monkeypatch.setattr(grid, "_alterers", [alter])
    whole = plain.pack_array
    monkeypatch.setattr(plain, "pack_array", lambda array: packed.append(array) or whole(array))  # type: ignore[arg-type,func-returns-value]
    replies = list(grid.send_and_receive(broadcast([1, 3, 4, 5], content)))
    assert put == [2]
    assert len(packed) == 3  # two shared, and one of the altered message
    sums = [float(np.sum(reply.content["arrays"]["w"].numpy())) for reply in replies]  # type: ignore[index,union-attr]
    assert sums == [8, 0, 8, 8]


def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(
    grid_of: Callable[..., RayGrid], tmp_path: Path
) -> None:
    told: list[str] = []
    grid = grid_of(functools.partial(ray_apps.deadly, str(tmp_path), 4, 1), 8, warn=told.append)
    replies = list(grid.send_and_receive(broadcast(list(range(1, 9)))))
    assert [reply.content["numbers"]["node"] for reply in replies] == list(range(1, 9))  # type: ignore[index,call-overload]
    assert grid.pool.failures == len(told) == 1, told
    assert "died and is replaced" in told[0]
    assert "tried again" in told[0]


def test_a_message_that_kills_every_worker_is_a_dropout_and_harms_no_other(
    grid_of: Callable[..., RayGrid], tmp_path: Path
) -> None:
    grid = grid_of(functools.partial(ray_apps.deadly, str(tmp_path), 4, 99), 8)
    replies = list(grid.send_and_receive(broadcast(list(range(1, 9)))))
    assert [reply.metadata.src_node_id for reply in replies] == list(range(1, 9))
    assert [reply.metadata.src_node_id for reply in replies if reply.has_error()] == [4]
    assert "its worker died 3 times" in str(replies[3].error.reason)
    assert grid.pool.failures == len(list(tmp_path.iterdir())) == 3


def test_a_client_that_never_answers_is_a_dropout_when_its_time_is_up(cluster: Cluster) -> None:
    told: list[str] = []
    size = Size(cpus=0.5, workers=2, patience=1.0)
    with closing(RayGrid(cluster, functools.partial(ray_apps.hanging, 4), 8, size=size, warn=told.append)) as grid:
        replies = list(grid.send_and_receive(broadcast(list(range(1, 9)))))
    assert [reply.metadata.src_node_id for reply in replies if reply.has_error()] == [4]
    assert replies[3].error.reason == "it took longer than runtime.client_timeout = 1 s"
    assert grid.pool.failures == len(told) > 0


def test_workers_that_cannot_work_end_the_run_with_the_reason(grid_of: Callable[..., RayGrid]) -> None:
    grid = grid_of(ray_apps.broken, 2, 1)
    with pytest.raises(FedsimError, match=r"client worker \d on .* cannot work: OSError: there is no such file"):
        grid.send_and_receive(broadcast([1, 2]))


def test_more_workers_than_fit_are_refused_and_room_is_kept(cluster: Cluster) -> None:
    with pytest.raises(InputError, match=r"runtime.workers: 17 .* 1 node with 8 CPUs") as refused:
        RayGrid(cluster, ray_apps.remembering, 2, size=Size(cpus=0.5, workers=17), warn=print)
    assert "16 would" in str(refused.value)
    with pytest.raises(InputError, match=r"no worker of 1 CPU and 0\.5 GPU fits"):
        RayGrid(cluster, ray_apps.remembering, 2, size=Size(gpus=0.5), warn=print)
    assert HALF.workers_on(cluster) == 16
    assert Size(cpus=0.5, beside=(1.0, 0.0)).workers_on(cluster) == 14
    assert Size(cpus=8, beside=(1.0, 0.0)).workers_on(cluster) == 1


NODES = """
import functools, os, sys, threading, time
from pathlib import Path
import ray_apps, torch
from flwr.app import Message, RecordDict
from ray.cluster_utils import Cluster
from fedsim.cluster.connecting import connected
from fedsim.cluster.sizing import Size
from fedsim.grids.flower_internals import to_record
from fedsim.grids.ray import RayGrid

marks = Path(sys.argv[1])
two = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = two.add_node(num_cpus=1)
told = []
try:
    with connected(two.address, told.append) as cluster:
        assert not cluster.local and sorted(cluster.slots(0.5).values()) == [2, 2], cluster.slots(0.5)
        grid = RayGrid(cluster, functools.partial(ray_apps.slow, str(marks)), 12, size=Size(cpus=1.0), warn=told.append)
        raylet = second.all_processes["raylet"][0].process

        def kill() -> None:
            while not list(marks.glob(f"{raylet.pid}-*")):
                time.sleep(0.02)
            raylet.kill()

        threading.Thread(target=kill).start()
        content = RecordDict({"arrays": to_record({"w": torch.arange(50.0)})})
        out = [Message(content, dst_node_id=node, message_type="train") for node in range(1, 13)]
        replies = list(grid.send_and_receive(out))
        sums = [float(reply.content["arrays"]["w"].numpy().sum()) for reply in replies]
        assert sums == [1225.0 * node for node in range(1, 13)], sums
        assert grid.pool.failures >= 1 and "joined the Ray cluster at" in told[0], told
        grid.close()
finally:
    two.shutdown()
print("survived")
"""


def test_a_node_that_is_killed_in_mid_round_costs_nothing_but_time(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NODES, str(tmp_path)],
        capture_output=True, text=True, timeout=150, check=False, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.stdout.endswith("survived\n"), done.stderr[-3000:]
