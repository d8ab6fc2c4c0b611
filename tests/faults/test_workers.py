"""On a Ray cluster: the same bits for any number of workers, in whatever order they end, and whatever dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crashing import Silent, experiments, hashes, made, table
from faulty import WHOLE, Tally
from strangers import Dawdling

from fedsim.cluster.connecting import connected
from fedsim.commands.run import execute
from fedsim.experiment import Component, Experiment
from fedsim.runs import RunFolder, read_lines

pytest.importorskip("ray", reason="needs pip install 'fedsim-adversarial[ray]'")


@pytest.fixture(scope="module")
def cluster(strangers_installed: Path) -> Iterator[None]:
    """Ray on this machine for all of these tests; this process is connected to it."""
    with connected("local", cpus=4):
        yield


def done(experiment: Experiment, path: Path, **runtime: Any) -> int:
    """Run it here; inline, if nothing is said of Ray. The exit code."""
    whole = replace(experiment, runtime=replace(experiment.runtime, **runtime))
    return execute(whole, RunFolder.create(path), Silent())


def on_ray(**runtime: Any) -> dict[str, Any]:
    return {"grid": "ray", "ray": "auto", "cpus_per_client": 0.5, "isolation": "process", **runtime}


# --- any number of workers ------------------------------------------------------------------------------------------


def dawdling(name: str) -> Experiment:
    """One of those that are killed elsewhere, in which clients and attacks take another time in every run."""
    experiment, slow = experiments()[name], Component("dawdling", Dawdling())
    clients = experiment.clients
    return replace(experiment, clients=replace(clients, defenses=(*clients.defenses, slow)))


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory, strangers_installed: Path) -> Callable[[str], dict[str, str]]:
    """`inline(name)`: what an experiment comes to in one process."""
    known: dict[str, dict[str, str]] = {}

    def get(name: str) -> dict[str, str]:
        if name not in known:
            path = tmp_path_factory.mktemp("inline") / name
            assert done(dawdling(name), path) == 0
            known[name] = hashes(path)
        return known[name]

    return get


HOW: dict[int, dict[str, Any]] = {1: {}, 2: {"attacks": "during"}, 4: {"attacks": "during"}}
"""By the number of workers, what else is asked for."""


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("name", "workers"),
    [(name, workers) for name in ("stateful", "summed") for workers in HOW] if WHOLE else [("summed", 2)],
)
def test_the_bits_do_not_depend_on_workers(
    name: str, workers: int, inline: Callable[[str], dict[str, str]], tmp_path: Path, tally: Tally
) -> None:
    tally("1, 2, 4 workers, shuffled completion")
    run = tmp_path / "run"
    assert done(dawdling(name), run, **on_ray(workers=workers, **HOW[workers])) == 0
    assert hashes(run) == inline(name)


# --- what dies ------------------------------------------------------------------------------------------------------


def content(fault: str, folder: Path, targets: list[int], attacked: list[int], **more: Any) -> dict[str, Any]:
    """An adversary that does no harm, and one with a fault."""
    common = {"name": "trying", "vantage": "link", "targets": targets, "rounds": attacked}
    return table(
        **{
            "rounds": 2,
            "save_rounds": [2],
            "model": {"name": "mlp", "hidden": [8]},
            "clients": {"count": 5, "algorithm": "fedsgd", "batch_size": 2},
            "server": {"learning_rate": 0.1},
            "adversaries": [
                {**common, "id": "good", "targets": [1], "rounds": [1]},
                {**common, "id": "faulty", "fault": fault, "folder": str(folder)},
            ],
            **more,
        }
    )


@pytest.mark.usefixtures("cluster")
def test_workers_that_are_killed_during_attacks(tmp_path: Path, tally: Tally) -> None:
    """Each of ten jobs kills the worker that tries it first; the answers are those of nobody killed."""
    targets, rounds = ([0, 1, 2, 3, 4], [1, 2]) if WHOLE else ([0], [1])
    jobs = [f"{client} {round_}" for client in targets for round_ in rounds]
    tally("Ray worker killed during an attack", len(jobs))
    notes, inline, run = tmp_path / "notes", tmp_path / "inline", tmp_path / "run"
    notes.mkdir()
    experiment = made("killed", content("worker killed once", notes, targets, rounds))
    for job in jobs:  # tried before: nothing is killed
        (notes / job).write_text("somebody\n")
    assert done(experiment, inline) == 0
    for job in jobs:
        (notes / job).unlink()
    assert done(experiment, run, **on_ray(workers=1)) == 0
    assert hashes(run) == hashes(inline)
    tries = {job: len((notes / job).read_text().splitlines()) for job in jobs}
    assert all(2 <= count <= 4 for count in tries.values()), tries
    said = json.loads((run / "manifest.json").read_text())["warnings"]
    assert len([text for text in said if "its Ray worker died; tried again, 1 of at most 3 times" in text]) == len(jobs)


@pytest.mark.usefixtures("cluster")
@pytest.mark.skipif(not WHOLE, reason="a part of the whole table")
def test_a_job_that_kills_its_worker_every_time(tmp_path: Path, tally: Tally) -> None:
    tally("one job kills its worker every time")
    notes, inline, run = tmp_path / "notes", tmp_path / "inline", tmp_path / "run"
    notes.mkdir()
    assert done(made("good", content("", notes, [0, 1], [1, 2])), inline) == 0
    experiment = made("deadly", content("worker killed", notes, [0, 1], [1, 2]))
    assert done(experiment, run, **on_ray(workers=1)) == 3
    lines = read_lines(run / "attacks.jsonl")
    assert [line["status"] for line in lines] == ["done", "failed", "done", "done", "done"]
    assert "quarantined, as it died 4 times: its Ray worker died" in lines[1]["error"]
    same = ("rounds.jsonl", "checkpoints/round-2.safetensors")
    assert all(hashes(run)[name] == hashes(inline)[name] for name in same)
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["status"], manifest["exit"]) == ("done", 3)
    assert any("quarantined" in text for text in manifest["warnings"])


FAILING = {"crash": "died 3 times", "hang": "client_timeout"}
"""By what a client does, what is said of it."""


@pytest.mark.usefixtures("cluster")
@pytest.mark.skipif(not WHOLE, reason="a part of the whole table")
@pytest.mark.parametrize("fault", FAILING)
def test_a_client_that_takes_its_worker_along_or_never_answers(fault: str, tmp_path: Path, tally: Tally) -> None:
    """A dropout, with its reason; the others' rounds are as inline, where that client raises instead."""
    tally("client crash, exception, hang")

    def failing(fault: str) -> Experiment:
        group = {"members": [1], "local_steps": 1, "batch_size": 8, "defenses": [{"name": "failing", "fault": fault}]}
        clients = {"count": 4, "local_steps": 1, "batch_size": 8, "groups": [group]}
        more = {"clients": clients, "server": {}, "adversaries": [], "rounds": 3, "save_rounds": [3]}
        return made("failing", content("", tmp_path, [0], [1], **more))

    inline, run = tmp_path / "inline", tmp_path / "run"
    assert done(failing("exception"), inline) == 0
    assert done(failing(fault), run, **on_ray(workers=2, client_timeout=3.0 if fault == "hang" else None)) == 0
    lines = read_lines(run / "rounds.jsonl")
    (dropout,) = lines[2]["dropouts"]
    assert dropout["client"] == 1 and FAILING[fault] in dropout["reason"], dropout
    assert [line["clients"] for line in lines[1:]] == [[0, 1, 2, 3], [0, 2, 3], [0, 1, 2, 3]]
    same = "checkpoints/round-3.safetensors"
    assert hashes(run)[same] == hashes(inline)[same]


NODES = '''
import sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from crashing import Silent
from fedsim.adversaries import threat
from fedsim.commands.run import execute
from fedsim.experiment_file import read
from fedsim.runs import RunFolder

file, run, notes, starts = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
two = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
second = two.add_node(num_cpus=2)
raylet = second.all_processes["raylet"][0].process
killed = []

def above(number):
    """A process and those that it comes from."""
    while number > 1:
        yield number
        try:
            number = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return

def kill():
    while not killed:
        for note in notes.iterdir():
            for line in note.read_text().splitlines() if note.name.startswith(starts) else ():
                if raylet.pid in above(int(line.split()[0])):
                    killed.append(note.name)
                    raylet.kill()
                    return
        time.sleep(0.01)

threading.Thread(target=kill, daemon=True).start()
try:
    code = execute(
        read(file, [f"runtime.ray='{two.address}'"], rules=[threat.check]), RunFolder.create(run), Silent()
    )
finally:
    two.shutdown()
print(f"exit {code}, killed in '{killed[0] if killed else 'nothing'}'")
'''

MOMENTS: dict[str, tuple[str, str]] = {
    "in mid-round": ("round", "after"),
    "in mid-attack": ("", "after"),
    "beside both": ("", "during"),
}
"""By when a machine is killed: how the notes begin that workers have left by then, and when attacks run."""


@pytest.mark.skipif(not WHOLE, reason="a part of the whole table")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_machine_that_is_killed(moment: str, strangers_installed: Path, tmp_path: Path, tally: Tally) -> None:
    """One of two. What it worked on is done again on the other, with the same bits."""
    tally("Ray node killed")
    starts, when = MOMENTS[moment]
    notes, inline, run, file = (tmp_path / name for name in ("notes", "inline", "run", "experiment.toml"))
    notes.mkdir()
    in_round = starts == "round"
    slow = [{"name": "failing", "fault": "slow", "folder": str(notes)}] if in_round else []
    targets = [0, 1, 2, 3, 4]
    clients = {"count": 5, "algorithm": "fedsgd", "batch_size": 2, "defenses": slow}
    parts = content("" if in_round else "slow", notes, targets, [1, 2], clients=clients)
    assert done(made("nodes", parts), inline) == 0
    for note in notes.iterdir():
        note.unlink()
    runtime = {**parts["runtime"], **on_ray(ray="local", workers=2, attacks=when, cpus_per_client=1.0)}
    from fedsim.experiment_file import as_toml

    file.write_text(as_toml(made("nodes", {**parts, "runtime": runtime})))
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NODES, str(file), str(run), str(notes), starts],
        capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert ended.stdout.splitlines()[-1:] and ended.stdout.splitlines()[-1].startswith("exit 0, killed in"), ended
    assert "nothing" not in ended.stdout
    assert hashes(run) == hashes(inline)
