"""Running a grid with pretended work: order, resuming, failures, dead workers, and what is left when it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from made import TEXT, Notebook, do, manifest, of_kinds, opened

from fedsim.errors import InputError
from fedsim.runs import alone
from fedsim.sweeps.cells import Grid, expand
from fedsim.sweeps.collect import collect
from fedsim.sweeps.file import parse
from fedsim.sweeps.folder import SweepFolder
from fedsim.sweeps.pool import ProcessPool
from fedsim.sweeps.runner import Kind, Runner, Tally, default_jobs


def grid(text: str) -> Grid:
    return expand(parse(text, "s.toml", "s"))


def sweep(text: str, path: Path, jobs: int = 1, show: Any = None) -> Tally:
    """Run a sweep of pretended work."""
    of = grid(text)
    return Runner(of, opened(path, of), ProcessPool(do, jobs), 1, show or Notebook()).run()


def statuses(path: Path) -> dict[str, str]:
    return {"-".join(cell["at"].values()): cell["status"] for cell in collect(path)["cells"]}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Notebook]:
    """A whole sweep, run once by two workers. Not to be changed."""
    path, notes = tmp_path_factory.mktemp("sweep") / "out", Notebook()
    tally = sweep(TEXT, path, 2, notes)
    assert tally.code == 0
    assert tally.failed == {}
    return path, notes


def test_everything_is_run_once(done: tuple[Path, Notebook]) -> None:
    path, notes = done
    assert statuses(path) == dict.fromkeys(("none-1", "none-4", "p90-1", "p90-4"), "done")
    assert len(list((path / "models").iterdir())) == 2
    assert notes.begun == (7, 0)  # two trainings, the time of one against the other, four cells
    assert [word for word, _ in notes.lines].count("ended") == 7
    assert ("attack", "none-1") in notes.lines


def test_a_cell_starts_from_its_training(done: tuple[Path, Notebook]) -> None:
    path, _ = done
    for cell in collect(path)["cells"]:
        told = manifest(path / cell["folder"])
        training = path / cell["training"]["folder"]
        assert told["checkpoint"] == str(training / "checkpoints" / "round-1.safetensors")
        assert told["began"] >= manifest(training)["ended"]
        assert told["threads"] == 1
        assert told["at"] == cell["at"]


def test_times_are_measured_of_all_but_the_baseline(done: tuple[Path, Notebook]) -> None:
    cells = {cell["folder"].rpartition("-")[0]: cell for cell in collect(done[0])["cells"]}
    assert cells["cells/none-1"]["training"]["time_ratio"] == 1.0
    assert cells["cells/p90-4"]["training"]["time_ratio"] == 2.0


def test_what_is_done_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "out"
    sweep(TEXT, path)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("manifest.json")}
    notes = Notebook()
    tally = sweep(TEXT, path, show=notes)
    assert (tally.ran, len(tally.found), notes.lines, notes.begun) == ([], 6, [], (6, 6))
    assert {file: file.stat().st_mtime_ns for file in path.rglob("manifest.json")} == before

    # broken off: begun, and never ended
    broken = next((path / "cells").glob("p90-1-*"))
    told = manifest(broken) | {"status": "running"}
    (broken / "manifest.json").write_text(json.dumps(told))
    (broken / "leftover").write_text("")
    assert statuses(path)["p90-1"] == "waiting"
    assert sweep(TEXT, path).ran == ["p90-1"]
    assert not (broken / "leftover").exists()

    # other content under the same name is another cell
    assert sweep(TEXT.replace('"clients.batch_size" = 4', '"clients.batch_size" = 5'), path).ran == ["none-4", "p90-4"]


def test_a_lost_model_is_trained_again(tmp_path: Path) -> None:
    text = of_kinds("fine", training=True)
    sweep(text, tmp_path / "out")
    next((tmp_path / "out").rglob("*.safetensors")).unlink()
    assert [name.split()[0] for name in sweep(text, tmp_path / "out").ran] == ["training"]


def test_a_cell_that_fails_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "out"
    tally = sweep(of_kinds("fails", "fine", "quarantined"), path)
    assert tally.code == 1
    assert tally.failed == {"fails": "ValueError: it broke"}
    assert tally.quarantined == ["quarantined"]
    assert statuses(path) == {"fails": "failed", "fine": "done", "quarantined": "done"}
    assert collect(path)["cells"][0]["error"] == "ValueError: it broke"
    # Those that failed are tried again.
    again = sweep(of_kinds("fails", "fine", "quarantined"), path)
    assert (again.ran, list(again.failed), again.quarantined) == ([], ["fails"], ["quarantined"])


def test_failed_attacks_alone_end_with_3(tmp_path: Path) -> None:
    assert sweep(of_kinds("fine", "quarantined"), tmp_path / "out").code == 3
    assert sweep(of_kinds("fine", "quarantined"), tmp_path / "out").code == 3


def test_a_dead_worker_takes_its_cell_alone(tmp_path: Path) -> None:
    path = tmp_path / "out"
    tally = sweep(of_kinds("killed", "fine-1", "quits", "fine-2"), path, jobs=2)
    assert set(tally.ran) == {"fine-1", "fine-2"}
    assert tally.failed["killed"].startswith("its process was ended by SIGKILL; most likely the machine ran out of mem")
    assert tally.failed["quits"] == "its process ended by itself with code 7"
    assert statuses(path) == {"killed": "failed", "fine-1": "done", "quits": "failed", "fine-2": "done"}
    assert "SIGKILL" in collect(path)["cells"][0]["error"]


def test_cells_without_their_model_fail_and_others_go_on(tmp_path: Path) -> None:
    text = of_kinds("a", "b", training=True).replace("seed = 0", "seed = 99")
    tally = sweep(text, tmp_path / "out")
    training = next(name for name in tally.failed if name.startswith("training"))
    assert tally.failed[training] == "ValueError: no model today"
    assert tally.failed["a"] == f"{training} failed, so there is no model to attack"
    assert "b" in tally.ran
    assert statuses(tmp_path / "out") == {"a": "failed", "b": "done"}


class Interrupting(Notebook):
    """Somebody who presses Ctrl-C as soon as the second run tells something."""

    def moved(self, kind: Kind, name: str, word: str, facts: tuple[Any, ...]) -> None:
        if name.startswith("slow"):
            raise KeyboardInterrupt


def test_what_is_done_stays_when_it_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        sweep(of_kinds("fine", "slow"), path, show=Interrupting())
    assert statuses(path) == {"fine": "done", "slow": "waiting"}
    worker = manifest(next((path / "cells").glob("slow-*")))["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_command_and_its_workers(number: signal.Signals, code: int, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(of_kinds("fine", "slow"))
    program = "import sys, made, fedsim.commands.work as work\nwork.do = made.do\nfrom fedsim.cli import main\n"
    program += "sys.exit(main(['sweep', 's.toml', '--out', 'out', '--jobs', '1']))"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/cells/slow-*/experiment.toml")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    worker = manifest(next(tmp_path.glob("out/cells/slow-*")))["pid"]
    os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches the whole group
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "stopped; what is done is in out, and `--out out` goes on from there" in out
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["status"] == "interrupted"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [cell["status"] for cell in results["cells"]] == ["done", "waiting"]


def test_a_worker_that_dies_idle_is_replaced(tmp_path: Path) -> None:
    of = grid(of_kinds("fine-1", "fine-2"))
    pool = ProcessPool(do, 1)
    runner = Runner(of, opened(tmp_path / "out", of), pool, None, Notebook())
    try:
        for step in runner._waiting:
            pool.start(step.key, runner._order(step))
            while pool.busy:
                words = [message.word for message in pool.messages(1.0)]
            assert words[-1] == "done"
            pool._workers[0].process.kill()
            pool._workers[0].process.join()
    finally:
        pool.stop()


def test_a_folder_belongs_to_one_sweep(tmp_path: Path) -> None:
    of = grid(of_kinds("fine"))
    opened(tmp_path / "out", of)
    other = expand(parse(of_kinds("fine"), "o.toml", "other"))
    with pytest.raises(InputError, match="holds the sweep 's', not 'other'"):
        opened(tmp_path / "out", other)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "precious").write_text("")
    with pytest.raises(InputError, match="not empty"):
        opened(tmp_path / "taken", of)


def test_as_many_processes_as_cores_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.sweeps.runner.cores", lambda: 8)
    of = grid(of_kinds("fine"))
    assert default_jobs(of, gpu=False) == 8
    assert default_jobs(of, gpu=True) == 1
    threaded = expand(parse(of_kinds("fine"), "s.toml", "s"), None, ["runtime.threads=3"])
    assert default_jobs(threaded, gpu=False) == 2


def test_nothing_of_it_imports_torch() -> None:
    code = (
        "import sys, fedsim.sweeps.runner, fedsim.sweeps.collect, fedsim.sweeps.estimate, fedsim.sweeps.timing\n"
        "import fedsim.sweeps.screens, fedsim.commands.sweep, fedsim.commands.work\n"
        "from fedsim.cli import main\n"
        "assert main(['check', sys.argv[1]]) == 0\n"
        "print({'torch', 'flwr', 'numpy'} & set(sys.modules))"
    )
    text = TEXT
    file = Path(os.environ.get("TMPDIR", "/tmp")) / f"fedsim-{os.getpid()}.toml"
    file.write_text(text)
    try:
        done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    finally:
        file.unlink()
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_sweeps_folder_names_its_parts(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    assert folder.results == tmp_path / "results.json"


def test_two_sweeps_do_not_work_in_one_folder(tmp_path: Path) -> None:
    folder = opened(tmp_path / "out", expand(parse(of_kinds("fine"), "s.toml", "s")))
    what = "fedsim sweep"
    with (
        alone(folder.path, what),
        pytest.raises(InputError, match=f"another `{what}` is at work"),
        alone(folder.path, what),
    ):
        pass
    with alone(folder.path, "fedsim sweep"):
        pass
