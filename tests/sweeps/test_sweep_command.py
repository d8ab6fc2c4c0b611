"""`fedsim sweep`, with real runs: one small sweep that all tests look at, and what goes on from it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from asking import Answer, ask
from made import TEXT

from fedsim import cli
from fedsim.adversaries import threat
from fedsim.experiment_file import read as read_experiment
from fedsim.sweeps.cells import expand
from fedsim.sweeps.file import parse

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.sweeps.estimate.TRIAL", 0.1)


ARGUMENTS = ("--jobs", "1", "--json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep file and the sweep's own folder beside it. Not to be changed."""
    place = tmp_path_factory.mktemp("command")
    (place / "mine.toml").write_text(TEXT)
    assert cli.main(["sweep", str(place / "mine.toml"), "--out", str(place / "out"), *ARGUMENTS]) == 0
    return place


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """A test's own copy."""
    return shutil.copytree(finished, tmp_path / "own")


def again(capsys: Capture, place: Path, *arguments: str) -> tuple[Answer, list[dict[str, Any]]]:
    answer = ask(capsys, "sweep", str(place / "mine.toml"), "--out", str(place / "out"), *ARGUMENTS, *arguments)
    return answer, [json.loads(line) for line in answer.out.splitlines()]


def test_a_sweep_leaves_results_tables_and_runs(finished: Path) -> None:
    out = finished / "out"
    results = json.loads((out / "results.json").read_text())
    assert [cell["status"] for cell in results["cells"]] == ["done"] * 4
    for cell in results["cells"]:
        assert cell["training"]["test_accuracy"] > 0
        assert cell["training"]["cpu_seconds"] > 0
        assert cell["training"]["time_ratio"] > 0
        attack = cell["attacks"][0]
        assert attack["values"]["psnr"]["n"] == int(cell["at"]["batch"])
        assert (attack["adversary"], attack["label"], attack["iterations"]) == ("inversion", "Inversion", 2)
        assert all((out / picture).is_file() for picture in attack["pictures"])
        assert (out / cell["folder"] / "report.html").is_file()
    timing = json.loads(next(out.glob("models/*/timing.json")).read_text())
    assert timing["ratio"] == results["cells"][2]["training"]["time_ratio"]
    assert "psnr" in (out / "cells.csv").read_text()
    assert (out / "table.md").read_text()
    assert (out / "report.html").is_file()
    assert json.loads((out / "sweep.json").read_text())["exit"] == 0


def test_a_cell_is_an_ordinary_run_from_the_trained_model(finished: Path, capsys: Capture) -> None:
    folder = next((finished / "out" / "cells").glob("p90-4-*"))
    experiment = read_experiment(str(folder / "experiment.toml"), rules=[threat.check])
    assert experiment.checkpoint is not None
    assert re.search(r"models/\w+/checkpoints/round-1\.safetensors$", experiment.checkpoint)
    assert json.loads((folder / "manifest.json").read_text())["status"] == "done"
    assert ask(capsys, "report", str(folder), "--json").code == 0


def test_a_sweep_goes_on_where_it_was(own: Path, capsys: Capture) -> None:
    answer, events = again(capsys, own)
    assert answer.code == 0
    assert (events[0]["event"], events[0]["total"], events[0]["done"]) == ("sweep", 6, 6)
    assert (events[-1]["event"], events[-1]["ran"], events[-1]["found"]) == ("done", 0, 6)


def test_a_removed_cell_is_run_alone_and_one_that_fails_fails_alone(own: Path, capsys: Capture) -> None:
    before = json.loads((own / "out" / "results.json").read_text())["cells"]
    shutil.rmtree(next((own / "out" / "cells").glob("none-4-*")))
    # Another model than the trained one: only the built model shows it.
    bad = '[[axes.points]]\nname = "bad"\nset = { "model.hidden" = [9] }\n\n[scales.tiny]'
    (own / "mine.toml").write_text(TEXT.replace("[scales.tiny]", bad))
    answer, events = again(capsys, own)
    assert answer.code == 1
    assert [event["name"] for event in events if event.get("status") == "done"] == ["none-4"]
    assert sorted(events[-1]["failed"]) == ["none-bad", "p90-bad"]
    cells = json.loads((own / "out" / "results.json").read_text())["cells"]
    assert [cell["status"] for cell in cells] == ["done", "done", "failed", "done", "done", "failed"]
    assert "is of another model" in cells[2]["error"]
    whole = [cell for cell in cells if cell["status"] == "done"]
    for cell in (*whole, *before):
        del cell["seconds"]
    assert whole == before  # the same bits


def test_report_rebuilds_a_sweep(own: Path, capsys: Capture) -> None:
    names = ("results.json", "table.md", "table.csv", "cells.csv", "report.html")
    before = {name: (own / "out" / name).read_bytes() for name in names}
    for name in names:
        (own / "out" / name).unlink()
    answer = ask(capsys, "report", str(own / "out"))
    assert (answer.code, answer.out) == (0, f"report: {own / 'out' / 'report.html'}\n")
    assert {name: (own / "out" / name).read_bytes() for name in names} == before


def test_the_resolved_file_is_the_same_sweep(own: Path, capsys: Capture) -> None:
    answer = ask(capsys, "sweep", str(own / "out" / "sweep.toml"), "--out", str(own / "out"), "--plan", "--json")
    planned = json.loads(answer.out)
    assert all(cell["done"] for cell in planned["cells"])


def test_a_plan_runs_nothing(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.toml").write_text(TEXT)
    answer = ask(capsys, "sweep", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "out"), "--plan")
    assert answer.code == 0
    assert "mine at scale 'tiny': 4 cells, 2 trainings" in answer.out
    assert "on this machine" in answer.out
    assert not (tmp_path / "out").exists()


def test_a_large_scale_asks_first(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.toml").write_text(TEXT)
    arguments = ("sweep", str(tmp_path / "mine.toml"), "--scale", "large", "--out", str(tmp_path / "out"))
    answer = ask(capsys, *arguments)
    assert answer.code == 2
    assert "give --yes to run it" in answer.err
    assert "attacks" in answer.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--jobs", "0"), "--jobs 0: must be at least 1"),
        (("--out", ""), "--out: is empty"),
        (("--scale", "x"), "--scale x: there is no such scale"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple[str, ...], what: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.toml").write_text(TEXT)
    answer = ask(capsys, "sweep", str(tmp_path / "mine.toml"), *arguments)
    assert answer.code == 2
    assert what in answer.err


def test_a_page_without_cells(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.toml").write_text('[sweep]\ntitle = "Who assumes what"\nshow = ["assumptions"]\n')
    answer = ask(capsys, "sweep", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "out"))
    assert answer.code == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["assumptions"]
    assert "geiping" in (tmp_path / "out" / "report.html").read_text()


def test_the_example_in_the_documentation_is_a_sweep() -> None:
    text = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    example = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert example
    sweep = parse(example.group(1), "pruning.toml", "pruning")
    for scale in sweep.scales or (None,):
        grid = expand(sweep, scale, rules=[threat.check])
        assert grid.trainings
        assert len(grid.cells) == len(grid.axes[0].points)
