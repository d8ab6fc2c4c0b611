"""The sum of several clients under secure aggregation: what it equals, and when there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spying import Silent, watch

from fedsim.experiment import Experiment
from fedsim.experiment_file import from_table
from fedsim.runs import RunFolder, read_lines
from fedsim.simulation import simulate

Make = Callable[..., Experiment]
MODES = ("ideal", "secagg+", "ckks")
BATCH = 2


@pytest.fixture
def images(tmp_path: Path) -> Callable[[int], dict[str, Any]]:
    """A data set of so many images, for clients that use all of theirs in every batch."""

    def made(count: int) -> dict[str, Any]:
        rng = np.random.default_rng(count)
        path = tmp_path / f"images-{count}.npz"
        pictures = rng.integers(0, 256, (count + 4, 6, 6, 1), dtype=np.uint8)
        labels = np.arange(count + 4) % 2
        np.savez(path, x_train=pictures[:count], y_train=labels[:count], x_test=pictures[count:], y_test=labels[count:])
        return {"name": "npz", "path": str(path), "classes": 2}

    return made


def secure(mode: str, least: int) -> dict[str, Any]:
    return {"name": mode, "min_survivors": least}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("clients", [2, 4, 8])
def test_the_sum_of_n_clients_is_the_gradient_of_one_batch_n_times_as_large(
    small: Make, images: Callable[[int], dict[str, Any]], tmp_path: Path, clients: int, mode: str
) -> None:
    data = images(clients * BATCH)
    entry = {"vantage": "server", "targets": tuple(range(clients))}
    apart = small(
        data=data,
        clients={"count": clients, "batch_size": BATCH},
        server={"secure_aggregation": secure(mode, min(clients, 3))},
    )
    together = small(data=data, clients={"count": 1, "batch_size": clients * BATCH})
    [seen] = [one for one in watch(apart, tmp_path / "apart", **entry) if one.sees("update")]
    [whole] = watch(together, tmp_path / "together", **(entry | {"targets": (0,)}))
    assert seen.facts["clients"] == list(range(clients))
    assert seen.facts["num_examples"] == clients * BATCH == whole.facts["num_examples"]
    error = seen.facts["secure_aggregation"]["error_bound"]
    for name, value in whole.part("update").items():
        assert value.abs().max() > 100 * error, "nothing is shown by gradients as small as the error"
        torch.testing.assert_close(seen.part("update")[name], value, atol=error + 1e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_sum_of_one_is_refused(small: Make, tmp_path: Path, mode: str) -> None:
    from fedsim.errors import InputError

    for least in (0, 1):
        with pytest.raises(InputError, match="min_survivors: must be at least 2"):
            small(server={"secure_aggregation": secure(mode, least)})
    with pytest.raises(InputError, match=r"min_survivors: .*clients must be left"):
        small(clients={"count": 1}, server={"secure_aggregation": mode})
    with pytest.raises(InputError, match="3 clients must be left at the end of a round, but only 2 take part"):
        small(clients={"count": 5, "per_round": 2}, server={"secure_aggregation": mode})


@pytest.mark.parametrize("mode", MODES)
def test_a_round_with_one_survivor_is_closed_and_shows_nothing(small: Make, tmp_path: Path, mode: str) -> None:
    """Three of four clients leave; the server has the fourth one's vector, and gets no sum."""
    experiment = small(
        rounds=12,
        clients={"count": 4, "dropout": 0.6},
        server={"secure_aggregation": mode},
        adversaries=[
            {"name": "dlg", "vantage": "server", "targets": "all", "rounds": "all", "iterations": 1},
        ],
        runtime={"isolation": "none"},
        scores={"lpips": "off"},
    )
    folder = RunFolder.create(tmp_path / "run")
    outcome = simulate(experiment, folder, Silent())
    rounds = [record for record in outcome.rounds if record.round]
    few = [record for record in rounds if len(record.clients) < 3]
    assert few, "the seed must make some rounds lose more than one client"
    closed = {record.round for record in rounds if record.skipped}
    assert {record.round for record in few} <= closed
    assert {line["round"] for line in outcome.attacks} == {record.round for record in rounds} - closed
    for before, record in zip(outcome.rounds, outcome.rounds[1:], strict=False):
        if record.round in closed:
            assert record.skipped is not None and "the model stays as it was" in record.skipped
            assert record.test_loss == before.test_loss, "the model has moved"


def test_ideal_and_whole_protocol_train_the_same_model_bit_by_bit(small: Make, tmp_path: Path) -> None:
    found = {}
    for mode in ("ideal", "secagg+"):
        experiment = small(
            rounds=3, clients={"count": 6}, server={"secure_aggregation": mode}, save_rounds=[3], runtime={}
        )
        folder = RunFolder.create(tmp_path / mode)
        simulate(experiment, folder, Silent())
        found[mode] = folder.checkpoint(3).read_bytes()
        assert [line["secure"]["survivors"] for line in read_lines(folder.rounds) if "secure" in line] == [6, 6, 6]
    assert found["ideal"] == found["secagg+"]


def test_the_secure_mean_is_the_plain_one_within_its_bound(small: Make, tmp_path: Path) -> None:
    """A step of the global model by the plain mean and by the secure one, with clients of different weights."""
    from fedsim.tensorfile import unpack

    found = {}
    for mode in ("off", "secagg+"):
        experiment = small(
            rounds=1,
            data={"name": "digits", "partition": {"kind": "linear"}},
            model={"name": "tiny_batchnorm"},
            clients={
                "count": 4,
                "algorithm": "fedavg",
                "local_epochs": 1,
                "batch_size": 64,
                "batchnorm": "share_running",
            },
            server={"secure_aggregation": mode, "learning_rate": 1.0},
            save_rounds=[1],
        )
        folder = RunFolder.create(tmp_path / mode)
        outcome = simulate(experiment, folder, Silent())
        found[mode] = unpack(folder.checkpoint(1).read_bytes())[0]
    facts = outcome.facts["secure_aggregation"]
    assert facts["most_examples"] >= max(one["examples"] for one in outcome.facts["clients"])
    assert outcome.rounds[1].secure is not None and outcome.rounds[1].secure["clipped"] == 0
    for name, value in found["off"].items():
        bound = facts["error_bound"] * (1 if "running" not in name else 64 / 4)
        assert (found["secagg+"][name] - value).abs().max() <= bound + 2e-6, name


def test_metrics_leave_a_client_only_if_the_file_asks(small: Make, tmp_path: Path) -> None:
    def losses(**mode: Any) -> list[float | None]:
        folder = RunFolder.create(tmp_path / str(len(mode)))
        outcome = simulate(small(server={"secure_aggregation": {"name": "ideal", **mode}}), folder, Silent())
        return [record.train_loss for record in outcome.rounds[1:]]

    assert losses() == [None, None]
    told = losses(metrics=["train_loss"])
    assert all(loss is not None and loss > 0 for loss in told)


@pytest.mark.parametrize("strategy", ["krum", "multikrum", "bulyan", "fedmedian", "fedtrimmedavg"])
def test_strategies_that_compare_single_updates_are_refused(small: Make, strategy: str) -> None:
    from fedsim.errors import InputError

    with pytest.raises(InputError, match=rf"server.strategy: '{strategy}' compares the updates of single clients"):
        small(clients={"count": 8}, server={"strategy": strategy, "secure_aggregation": "secagg+"})


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_strategies_that_average_work_on_the_mean(small: Make, tmp_path: Path, strategy: str) -> None:
    found = {}
    for mode in ("off", "ideal"):
        experiment = small(clients={"count": 4}, server={"strategy": strategy, "secure_aggregation": mode})
        outcome = simulate(experiment, RunFolder.create(tmp_path / mode), Silent())
        found[mode] = [record.test_loss for record in outcome.rounds]
    assert found["off"] == pytest.approx(found["ideal"], abs=1e-4)
    assert found["off"][0] != found["off"][-1]


def test_too_coarse_a_sum_is_refused_with_the_remedy() -> None:
    from fedsim.errors import InputError

    table: dict[str, Any] = {
        "rounds": 1,
        "data": {"name": "digits"},
        "model": {"name": "mlp"},
        "clients": {"count": 1000, "algorithm": "fedsgd", "batch_size": 1024},
        "server": {"secure_aggregation": "ideal"},
    }
    with pytest.raises(InputError, match=r"secure_aggregation.clip: .*fractional bits.*use bits = 64"):
        from_table(table)
    table["server"]["secure_aggregation"] = {"name": "ideal", "bits": 64}
    from_table(table)


@pytest.mark.parametrize("mode", ["ideal", "secagg+"])
def test_with_fewer_than_min_clients_no_sum_is_opened(small: Make, tmp_path: Path, mode: str) -> None:
    """A sum that moves no model would be of use to nobody but an adversary."""
    experiment = small(
        rounds=8,
        clients={"count": 5, "dropout": 0.15},
        server={"secure_aggregation": mode, "min_clients": 5},
        adversaries=[{"name": "dlg", "vantage": "server", "targets": "all", "rounds": "all", "iterations": 1}],
        runtime={"isolation": "none"},
        scores={"lpips": "off"},
    )
    outcome = simulate(experiment, RunFolder.create(tmp_path / "run"), Silent())
    closed = [record for record in outcome.rounds if record.skipped]
    assert any("server.min_clients = 5 are required" in str(record.skipped) for record in closed)
    assert 0 < len(closed) < 8
    assert {line["round"] for line in outcome.attacks} == set(range(1, 9)) - {record.round for record in closed}
