"""The same apps on Flower's own simulation engine. In a process of its own, which takes its Ray workers with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from conftest import small_table
from fedsim.clients.app import client_app
from fedsim.experiment_file import from_table
from fedsim.grids.inline import InlineGrid
from fedsim.server.app import server_app
from flwr.app import Context, RecordDict
from flwr.simulation import run_simulation

experiment = from_table(small_table(server={"secure_aggregation": sys.argv[2]}))
ours, theirs = [], []
run_simulation(
    server_app(experiment, theirs.append), client_app(experiment), num_supernodes=4,
    backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
)
# Ours comes second: it takes on this process's identity, with which Flower's engine would wait for another run.
server_app(experiment, ours.append)(InlineGrid(client_app(experiment), 4), Context(1, 0, {}, RecordDict(), {}))
print(json.dumps([[[r.train_loss, r.test_loss, len(r.clients)] for r in records] for records in (ours, theirs)]))
"""


@pytest.mark.parametrize("mode", ["off", "secagg+"])
def test_flowers_engine_gives_the_losses_of_our_grid(mode: str) -> None:
    pytest.importorskip("ray", reason="Flower's engine needs ray: pip install 'flwr[simulation]'")
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, tests, mode],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(ours) == 3
    assert ours[-1][2] == 4
    # The engine's node ids are random, so clients may be added up in another order, which integers do not notice.
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert mine == (pytest.approx(other, rel=1e-5) if mode == "off" else other)
    assert ours[0] == theirs[0]
