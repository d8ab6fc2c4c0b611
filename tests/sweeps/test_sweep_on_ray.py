"""A sweep on a Ray cluster: the same as one on this machine, whatever dies meanwhile, and nothing left when it stops.

One cluster for all tests but that of signals, whose sweep starts, and ends, its own.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import made
import pytest
from asking import ask
from made import TEXT, Notebook, manifest, of_kinds, opened

from fedsim.cluster import sweeping
from fedsim.cluster.connecting import Cluster, Node, connected, ray_module
from fedsim.cluster.sweeping import RayPool
from fedsim.commands import work
from fedsim.commands.sweep import write_results
from fedsim.errors import InputError
from fedsim.sweeps import away
from fedsim.sweeps.cells import expand, narrow
from fedsim.sweeps.collect import collect
from fedsim.sweeps.file import parse
from fedsim.sweeps.pool import Message, ProcessPool
from fedsim.sweeps.runner import Kind, Order, Runner, Tally

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Ray on this machine, with two processors. Its workers do not find the tests' modules."""
    with connected("local", cpus=2) as one:
        cloudpickle = ray_module().cloudpickle
        cloudpickle.register_pickle_by_value(made)
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield one
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
        cloudpickle.unregister_pickle_by_value(made)


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the sweep is started, its tasks are, too."""
    monkeypatch.chdir(tmp_path)


def sweep(text: str, path: Path, cluster: Cluster, show: Any = None) -> Tally:
    """Of pretended work."""
    grid = expand(parse(text, "s.toml", "s"))
    return Runner(grid, opened(path, grid), RayPool(made.do, 2, cluster), 1, show or Notebook()).run()


def statuses(path: Path) -> dict[str, str]:
    return {"-".join(cell["at"].values()): cell["status"] for cell in collect(path)["cells"]}


class Here:
    """A pool that does the work at once, in this process; attacks, too."""

    def __init__(self) -> None:
        self._said: list[Message] = []

    free = property(lambda self: 1 - self.busy)
    busy = property(lambda self: len(self._said))

    def start(self, piece: str, content: Any) -> None:
        runtime = replace(content.experiment.runtime, isolation="none")
        order = replace(content, experiment=replace(content.experiment, runtime=runtime))
        self._said.append(Message(piece, "done", (work.do(order, lambda *words: None),)))

    def messages(self, seconds: float) -> Iterator[Message]:
        while self._said:
            yield self._said.pop()

    def stop(self) -> None:
        pass


def work_that_dies(mark: str, order: Order, tell: Callable[..., None]) -> int:
    """Real work, but that in the midst of a cell the process is killed once."""

    def tell_and_die(*words: Any) -> None:
        tell(*words)
        if order.kind == "cell" and not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return work.do(order, tell_and_die)


def test_it_comes_to_the_same_as_here_also_when_a_worker_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    grid = narrow(expand(parse(TEXT, "s.toml", "s")), ["batch=4", "defense=p90"])
    here, there, mark = tmp_path / "here" / "out", tmp_path / "there" / "out", tmp_path / "died"
    assert Runner(grid, opened(here, grid), Here(), 1, Notebook()).run().code == 0
    notes = Notebook()
    pool = RayPool(functools.partial(work_that_dies, str(mark)), 1, cluster)
    tally = Runner(grid, opened(there, grid), pool, 1, notes).run()
    assert (tally.code, len(tally.ran)) == (0, 3)  # the training, its time, the cell
    assert mark.exists()
    assert [line for line in notes.lines if line[0] == "warn"] == [("warn", "p90-4")]  # the death is told
    assert {"rounds", "attack"} <= {word for word, _ in notes.lines}

    for path in (here, there):
        write_results(path)
    results = [untimed(json.loads((path / "results.json").read_text())) for path in (here, there)]
    assert results[0] == results[1]
    (cell,) = collect(there)["cells"]
    assert cell["attacks"][0]["values"]["psnr"]["n"] == 4
    run = cell["folder"]
    assert lines(there / run / "attacks.jsonl") == lines(here / run / "attacks.jsonl")
    assert lines(there / run / "rounds.jsonl") == lines(here / run / "rounds.jsonl")
    files = [path.relative_to(here) for kind in ("*.safetensors", "*.png") for path in here.rglob(kind)]
    assert len(files) >= 3  # the model, what was captured, the picture
    for file in files:
        if "resume" not in file.parts:
            assert (there / file).read_bytes() == (here / file).read_bytes()
    # Where the sweep has the checkpoint, and not where the node had it.
    assert f'checkpoint = "{there}/models/' in (there / run / "experiment.toml").read_text()
    assert manifest(there / run)["command"] == manifest(here / run)["command"]

    # What is done is not run again, here as little as there.
    again = Runner(grid, opened(there, grid), ProcessPool(made.do, 1), 1, Notebook()).run()
    assert (again.ran, len(again.found)) == ([], 2)
    again = Runner(grid, opened(here, grid), RayPool(made.do, 1, cluster), 1, Notebook()).run()
    assert (again.ran, len(again.found)) == ([], 2)


def untimed(data: Any) -> Any:
    """Without what a clock gave."""
    if isinstance(data, dict):
        clocks = {"seconds", "cpu_seconds", "time_ratio"}
        return {key: untimed(value) for key, value in data.items() if key not in clocks}
    return [untimed(one) for one in data] if isinstance(data, list) else data


def lines(path: Path) -> list[Any]:
    return [untimed(json.loads(line)) for line in path.read_text().splitlines()]


def test_what_fails_fails_as_it_does_here(cluster: Cluster, tmp_path: Path) -> None:
    text = of_kinds("fails", "fine", "quarantined", "dies", "killed")
    notes = Notebook()
    tally = sweep(text, tmp_path / "out", cluster, notes)
    assert sorted(tally.ran) == ["dies", "fine", "quarantined"]
    assert tally.quarantined == ["quarantined"]
    assert tally.failed["fails"] == "ValueError: it broke"
    assert tally.failed["killed"].startswith("its worker died, 4 times")
    assert sorted(name for word, name in notes.lines if word == "warn") == ["dies", "killed", "killed", "killed"]
    assert statuses(tmp_path / "out") == {
        "fails": "failed", "fine": "done", "quarantined": "done", "dies": "done", "killed": "failed"
    }  # fmt: skip
    broken = next((tmp_path / "out" / "cells").glob("fails-*"))
    assert (broken / "experiment.toml").is_file()  # as far as it came
    assert manifest(broken)["error"] == "ValueError: it broke"
    assert not list((tmp_path / "out" / "cells").glob(".*"))


def test_work_that_does_not_arrive_is_said(cluster: Cluster, tmp_path: Path) -> None:
    class Missing:
        """What only this process can make."""

        def __call__(self, order: Order, tell: Callable[..., None]) -> int:
            return 0

        def __reduce__(self) -> Any:
            return __import__, ("no_such_plugin",)

    grid = expand(parse(of_kinds("fine"), "s.toml", "s"))
    tally = Runner(grid, opened(tmp_path / "out", grid), RayPool(Missing(), 2, cluster), 1, Notebook()).run()
    assert "no_such_plugin" in tally.failed["fine"]
    assert "every node needs fedsim and the plugins in use" in tally.failed["fine"]


class Interrupting(Notebook):
    """Somebody who presses Ctrl-C as soon as the second run tells something."""

    def moved(self, kind: Kind, name: str, word: str, facts: tuple[Any, ...]) -> None:
        if not name.startswith("fine"):
            raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["slow", "stuck"])
def test_what_is_done_stays_when_it_is_stopped(
    how: str, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = set(Path(tempfile.gettempdir()).glob(f"{away.PREFIX}*"))
    monkeypatch.setattr(sweeping, "PATIENCE", 2.0)
    with pytest.raises(KeyboardInterrupt):
        sweep(of_kinds("fine", how), tmp_path / "out", cluster, Interrupting())
    assert set(statuses(tmp_path / "out").values()) <= {"done", "waiting"}
    assert statuses(tmp_path / "out")[how] == "waiting"
    assert not list((tmp_path / "out" / "cells").glob(f"{how}-*"))
    assert set(Path(tempfile.gettempdir()).glob(f"{away.PREFIX}*")) <= rooms
    # Nobody works any more: there is room for as much as before.
    assert sweep(of_kinds("fine", "fine-2"), tmp_path / "out", cluster).code == 0


def test_a_plan_says_what_the_cluster_holds(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.sweeps.estimate.TRIAL", 0.1)
    (tmp_path / "mine.toml").write_text(TEXT)
    told = ask(capsys, "sweep", "mine.toml", "--ray", "auto", "--plan")
    assert told.code == 0
    assert "2 processes on the Ray cluster" in told.out
    assert "1 node with 2 CPUs" in told.out
    told = ask(capsys, "sweep", "mine.toml", "--ray", "auto", "--jobs", "1", "--plan", "--json")
    assert json.loads(told.out)["jobs"] == 1
    told = ask(capsys, "sweep", "mine.toml", "--ray", "auto", "--set", "runtime.threads=3")
    assert told.code == 2
    assert "a run takes 3 CPUs, and no node has that (1 node with 2 CPUs)" in told.err
    assert not list(tmp_path.glob("runs/*"))


def test_an_interrupt_ends_the_command_and_all_that_it_started(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(of_kinds("fine", "slow"))
    (tmp_path / "rooms").mkdir()
    program = "import sys, made, fedsim.commands.work as work\nwork.do = made.do\nfrom fedsim.cli import main\n"
    program += "sys.exit(main(['sweep', 's.toml', '--out', 'out', '--jobs', '1', '--ray', 'local', '--json']))"
    mark = f"FEDSIM_TEST_MARK={tmp_path}"
    own = dict([mark.split("=")], PYTHONPATH=str(Path(__file__).parent), TMPDIR=str(tmp_path / "rooms"))
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    assert process.stdout
    said: list[dict[str, Any]] = []
    while not said or (said[-1].get("event"), said[-1].get("run")) != ("attack", "slow"):
        line = process.stdout.readline()
        assert line, process.communicate()
        said.append(json.loads(line))
    assert len(marked(mark)) > 3  # the command, Ray's processes, the worker
    os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the whole group
    _, err = process.communicate(timeout=60)
    watchdog.cancel()
    assert process.returncode == 130
    assert "Traceback" not in err
    deadline = time.monotonic() + 10
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert marked(mark) == []
    assert list((tmp_path / "rooms").glob("fedsim-sweep-*")) == []
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["status"] == "interrupted"
    assert statuses(tmp_path / "out") == {"fine": "done", "slow": "waiting"}


def marked(mark: str) -> list[str]:
    """Processes that live with something in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (place / "environ").read_bytes().split(b"\0"):
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


class Machines(Cluster):
    """A cluster in words."""

    def __init__(self, *nodes: Node) -> None:
        super().__init__("head:6379", local=False)
        self._nodes = nodes

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self._nodes


def needing(**runtime: Any) -> Any:
    settings = [f"runtime.{key}={json.dumps(value)}" for key, value in {"device": "cpu", **runtime}.items()]
    return expand(parse(TEXT, "s.toml", "s"), settings=settings).cells[0].experiment


def test_a_run_takes_what_its_settings_say() -> None:
    assert sweeping.needs(needing(), gpus=True) == (1, 0)
    assert sweeping.needs(needing(threads=3, device="auto"), gpus=False) == (3, 0)
    assert sweeping.needs(needing(device="auto"), gpus=True) == (1, 1)
    ray = {"grid": "ray", "gpus_per_client": 0.25, "gpus_per_attack": 0.5}
    assert sweeping.needs(needing(device="cuda", **ray), gpus=True) == (1, 0.5)


def test_as_many_at_once_as_nodes_hold() -> None:
    cluster = Machines(Node("a", "10.0.0.1", 5.0, 0.0), Node("b", "10.0.0.2", 8.0, 2.0))
    assert sweeping.at_once(cluster, [needing()]) == 13
    assert sweeping.at_once(cluster, [needing(threads=4)]) == 3
    assert sweeping.at_once(cluster, [needing(device="auto")]) == 2
    with pytest.raises(InputError, match="'head:6379': a run takes 6 CPUs and 1 GPUs, and no node has that"):
        sweeping.at_once(
            Machines(cluster.nodes[0], Node("c", "10.0.0.3", 2.0, 1.0)), [needing(threads=6, device="auto")]
        )
