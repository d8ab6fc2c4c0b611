"""What results are made of: numbers over images, the cost of a defense, and the estimate of a sweep's cost."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made import TEXT, opened

from fedsim import manifest as manifests
from fedsim.runs import RunFolder, append_line
from fedsim.sweeps import estimate, timing
from fedsim.sweeps.cells import Cell, Grid, expand
from fedsim.sweeps.collect import collect, write
from fedsim.sweeps.file import parse
from fedsim.sweeps.folder import SweepFolder


def grid(text: str = TEXT, *settings: str) -> Grid:
    return expand(parse(text, "s.toml", "s"), None, settings)


def line(**changes: Any) -> dict[str, Any]:
    return {
        "adversary": "inversion",
        "status": "done",
        "error": None,
        "batch": 2,
        "iterations": 300,
        "label_accuracy": 1.0,
        "lpips_net": "squeeze",
        "lpips_note": None,
        "picture": "reconstructions/a.png",
        "per_image": {"psnr": [10.0, 20.0], "ssim": [0.1, 0.4], "lpips": [0.5, 0.2], "lpips_paper": None},
        **changes,
    }


@pytest.fixture
def folder(tmp_path: Path) -> tuple[SweepFolder, Grid]:
    of = grid()
    return opened(tmp_path / "out", of), of


def finish(folder: SweepFolder, cell: Cell, *lines: dict[str, Any]) -> None:
    run = RunFolder.create(folder.cell(cell).path)
    manifests.write(run, {"status": "done", "content_sha256": cell.hash, "seconds": 12.5, "exit": 0})
    for one in lines:
        append_line(run.attacks, one)


def test_values_are_over_all_images_of_all_lines(folder: tuple[SweepFolder, Grid]) -> None:
    place, of = folder
    second = line(per_image={"psnr": [30.0], "ssim": [0.7], "lpips": [0.8]}, batch=1, label_accuracy=0.0, picture=None)
    finish(place, of.cells[0], line(), second, line(adversary="other", per_image={"psnr": [1.0]}))
    first = collect(place.path)["cells"][0]
    assert (first["status"], first["seconds"], first["error"]) == ("done", 12.5, None)
    inversion, other = first["attacks"]
    psnr = inversion["values"]["psnr"]
    assert psnr == {"mean": 20.0, "best": 30.0, "std": pytest.approx(statistics.pstdev([10, 20, 30])), "n": 3}
    assert inversion["values"]["lpips"]["best"] == 0.2  # the smallest leaks most
    assert inversion["values"]["ssim"]["best"] == 0.7
    assert "lpips_paper" not in inversion["values"]
    assert (inversion["n"], inversion["label"], other["label"]) == (3, "Inversion", "other")
    assert inversion["label_accuracy"] == pytest.approx(2 / 3)
    assert inversion["pictures"] == [f"{of.cells[0].folder}/reconstructions/a.png"]
    assert inversion["lpips_net"] == "squeeze"


def test_one_of_several_answers_has_its_adversarys_label(folder: tuple[SweepFolder, Grid]) -> None:
    place, of = folder
    finish(place, of.cells[0], line(adversary="inversion-least_squares"))
    assert collect(place.path)["cells"][0]["attacks"][0]["label"] == "Inversion, least squares"


def test_what_failed_is_told(folder: tuple[SweepFolder, Grid]) -> None:
    place, of = folder
    finish(place, of.cells[0], line(), {"adversary": "inversion", "status": "failed", "error": "it broke"})
    attack = collect(place.path)["cells"][0]["attacks"][0]
    assert (attack["status"], attack["error"], attack["n"]) == ("failed", "it broke", 2)


def test_numbers_that_are_none_count_for_nothing(folder: tuple[SweepFolder, Grid]) -> None:
    place, of = folder
    finish(place, of.cells[0], line(per_image={"psnr": [None, 10.0], "ssim": None}))
    values = collect(place.path)["cells"][0]["attacks"][0]["values"]
    assert values["psnr"] == {"mean": 10.0, "best": 10.0, "std": 0.0, "n": 1}
    assert "ssim" not in values


def test_a_training_tells_its_last_accuracy(folder: tuple[SweepFolder, Grid]) -> None:
    place, of = folder
    one = of.trainings[1]
    run = RunFolder.create(place.model(one).path)
    manifests.write(run, {"status": "done", "content_sha256": one.hash, "cpu_seconds": 3.5})
    for number, accuracy in ((0, 0.1), (1, 0.6), (2, None)):
        append_line(run.rounds, {"round": number, "test_accuracy": accuracy})
    place.timing(one).write_text(json.dumps({"baseline": of.trainings[0].hash, "ratio": 1.25}))
    told = collect(place.path)["cells"][2]["training"]
    assert told == {
        "hash": one.hash,
        "folder": one.folder,
        "rounds": 2,
        "test_accuracy": 0.6,
        "cpu_seconds": 3.5,
        "time_ratio": 1.25,
    }
    # measured against something else
    place.timing(one).write_text(json.dumps({"baseline": "other", "ratio": 1.25}))
    assert collect(place.path)["cells"][2]["training"]["time_ratio"] is None


def test_results_hold_what_the_file_says(folder: tuple[SweepFolder, Grid]) -> None:
    place, _ = folder
    results = write(place.path, {"assumptions": [{"a": 1}]})
    assert json.loads(place.results.read_text()) == results
    assert results["assumptions"] == [{"a": 1}]
    assert (results["name"], results["scale"], results["show"]) == ("s", "tiny", ["table", "plane"])
    assert results["table"]["rows"] == "batch"
    assert results["table"]["protocols"][0]["adversaries"] == ["inversion"]
    assert results["published"]["psnr"]["mean"]["1"] == {"none": 10.0, "p90": 8}
    assert results["axes"][0]["points"] == [{"name": "none", "label": "None"}, {"name": "p90", "label": "p90"}]
    assert {cell["status"] for cell in results["cells"]} == {"waiting"}


# --- the cost of a defense ------------------------------------------------------------------------------------------


class Clock:
    """A clock that the rounds themselves move."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_ratio_is_the_median_of_rounds_in_turns() -> None:
    clock, played = Clock(), []
    costs: Iterator[float] = iter([1.0, 3.0, 3.0, 30.0] + [3.0] * 100)

    def own(number: int) -> None:
        played.append(("own", number))
        clock.now += next(costs)

    def baseline(number: int) -> None:
        played.append(("baseline", number))
        clock.now += 2.0

    found = timing.compare(own, baseline, 4, clock)
    assert found.ratio == 1.5  # one slow round does not move it
    assert len(found.own) == len(found.baseline) == timing.MOST
    assert [number for who, number in played if who == "own"][:6] == [1, 1, 2, 3, 4, 1]
    assert [who for who, _ in played[2:6]] == ["baseline", "own", "own", "baseline"]


def test_long_rounds_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)

    def play(number: int) -> None:
        clock.now += 10.0

    assert len(timing.compare(play, play, 4, clock).own) == 1


# --- the estimate ---------------------------------------------------------------------------------------------------


@pytest.fixture
def second_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_measure", lambda *_: 1.0)


def cost(of: Grid, jobs: int = 1) -> estimate.Cost:
    return estimate.estimate(of.trainings, of.cells, jobs, 1)


@pytest.mark.usefixtures("second_a_pass")
def test_an_estimate_counts_steps() -> None:
    found = cost(grid())
    attacks = next(stage for stage in found.stages if stage.name == "attacks")
    # 4 cells, 1 target, 1 round, 2 iterations
    assert attacks.passes == 4 * 2 * estimate.ATTACK_STEP
    trainings = next(stage for stage in found.stages if stage.name == "trainings")
    # 2 trainings of 2 rounds with 2 clients, evaluated 3 times on the test images, in batches of 32
    tested = 3 * len(_test_images()) / 32 * estimate.EVALUATION
    assert trainings.passes == pytest.approx(2 * (4 * estimate.TRAINING_STEP + tested))
    assert found.hours == pytest.approx(sum(stage.seconds for stage in found.stages) / 3600)


def _test_images() -> Any:
    from fedsim.data.embedded import Digits

    return Digits().load().test


@pytest.mark.usefixtures("second_a_pass")
@pytest.mark.parametrize(
    ("setting", "factor"),
    [
        ("adversaries.0.restarts=3", 3),
        ("adversaries.0.iterations=10", 5),
        ("adversaries.0.targets=[0,1]", 2),
    ],
)
def test_an_estimate_grows_with_what_is_set(setting: str, factor: int) -> None:
    before, after = cost(grid()).stages[2], cost(grid(TEXT, setting)).stages[2]
    assert after.seconds == pytest.approx(before.seconds * factor)


@pytest.mark.usefixtures("second_a_pass")
def test_no_number_of_processes_shortens_the_longest_run() -> None:
    one, many = cost(grid(), 1).hours, cost(grid(), 1000).hours
    assert one is not None
    assert many is not None
    assert one / 1000 < many < one


def test_a_trial_takes_little_time_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "TRIAL", 0.1)
    found = cost(grid())
    text = "\n".join(found.lines())
    assert "a pass of mlp with 4 images on cpu takes" in text
    assert "with 1 process on this machine" in text
    assert found.hours is not None
    assert found.hours < 1


def test_data_that_cannot_be_had_leave_no_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsim.errors import DataUnavailable

    def missing(*_: object) -> None:
        raise DataUnavailable("digits are out")

    monkeypatch.setattr("fedsim.data.federation.load_federation", missing)
    assert list(cost(grid()).lines()) == ["the cost cannot be estimated: digits are out"]


@pytest.mark.parametrize(
    ("hours", "words"), [(0.01, "36 seconds"), (0.5, "30 minutes"), (3.21, "3.2 hours"), (240, "10 days")]
)
def test_hours_are_spoken(hours: float, words: str) -> None:
    assert estimate.spoken(hours) == words
