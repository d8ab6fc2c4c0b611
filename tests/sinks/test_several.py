"""Several sinks at once: one that fails, hangs or is slow costs nobody else anything."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.errors import InputError
from fedsim.experiment import Component
from fedsim.experiment_file import as_table, as_toml, from_table, read
from fedsim.runs import RoundRecord, append_attack, append_round
from fedsim.sinks import base, several
from fedsim.sinks.base import Held, SinkRun, flat, of_attack, of_round
from fedsim.sinks.several import Sinks, opened


@dataclass(frozen=True)
class Noting:
    """Writes down what it is told; fails in the round that it is told to fail in."""

    told: list[Any] = field(default_factory=list)
    fails: int = -1
    hangs: bool = False
    no_open: bool = False

    def open(self, run: SinkRun) -> Noting:
        if self.no_open:
            raise ImportError("another version of\n protobuf")
        self.told.append(run)
        return self

    def round(self, record: RoundRecord) -> None:
        if self.hangs:
            threading.Event().wait()
        if record.round == self.fails:
            raise OSError("the disk is full")
        self.told.append(record.round)

    def attack(self, line: Mapping[str, Any]) -> None:
        self.told.append((line["adversary"], line["seconds"]))

    def end(self, status: str, facts: Mapping[str, Any]) -> None:
        self.told.append((status, dict(facts)))


RUN = SinkRun(Path("run"), "run", {})


def test_a_sink_that_fails_is_named_once_and_the_others_go_on(record: Any) -> None:
    good, bad, closed = Noting(), Noting(fails=1), Noting(no_open=True)
    warnings: list[str] = []
    sinks = Sinks(
        [Component(n, s) for n, s in (("bad", bad), ("good", good), ("closed", closed))], RUN, warnings.append
    )
    for number in range(4):
        sinks.round(record(number))
    sinks.end("done", {"device": "cpu"})
    assert good.told == [RUN, 0, 1, 2, 3, ("done", {"device": "cpu"})]
    assert bad.told == [RUN, 0]
    assert sorted(warnings) == [
        "sink 'bad' failed and is told nothing more: OSError: the disk is full",
        "sink 'closed' failed and is told nothing more: ImportError: another version of protobuf",
    ]


def test_a_sink_that_hangs_holds_up_nothing(record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "PATIENCE", 0.2)
    warnings: list[str] = []
    start = time.monotonic()
    sinks = Sinks([Component("stuck", Noting(hangs=True))], RUN, warnings.append)
    for number in range(100):
        sinks.round(record(number))
    assert time.monotonic() - start < 0.2, "the run does not wait for it"
    sinks.end("done", {})
    assert time.monotonic() - start < 5
    assert warnings == ["sink 'stuck' is not done in time and is left behind; its log may lack the last part"]


def test_what_is_told_is_what_it_was_then(record: Any, line: Any) -> None:
    good = Noting()
    sinks = Sinks([Component("good", good)], RUN, pytest.fail)
    one, other = record(1), line(1)
    sinks.round(one)
    sinks.attack(other)
    one.round = 9
    del other["seconds"]
    sinks.end("done", {})
    assert good.told == [RUN, 1, ("geiping", 2.5), ("done", {})]


def test_how_a_run_ended(made: Any, new_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, folder = made(), new_folder(tmp_path / "run")
    good = Noting()
    object.__setattr__(experiment.logging, "sinks", (Component("good", good),))
    for error, status in ((KeyboardInterrupt, "interrupted"), (ValueError, "failed")):
        with pytest.raises(error), opened(experiment, folder, pytest.fail):
            raise error
        assert good.told[-1] == (status, {})
    with opened(experiment, folder, pytest.fail) as sinks:
        sinks.end("failed", {"error": "x"})
    assert good.told[-1] == ("failed", {"error": "x"}), "the end is told once"


def test_a_run_that_goes_on_tells_all_again(made: Any, new_folder: Any, tmp_path: Path, record: Any, line: Any) -> None:
    experiment, folder = made(), new_folder(tmp_path / "run")
    good = Noting()
    object.__setattr__(experiment.logging, "sinks", (Component("good", good),))
    append_round(folder, record(0))
    append_round(folder, record(1))
    append_attack(folder, line(1, job="a"))
    with opened(experiment, folder, pytest.fail, resumed=2) as sinks:
        sinks.round(record(2))
    assert good.told[0].resumed == 2 and good.told[0].path.is_absolute()
    assert good.told[1:] == [0, 1, ("geiping", 2.5), 2, ("done", {})]


def test_what_a_log_has_is_passed_over_as_often_as_it_has_it() -> None:
    held = Held([("a", 1), ("a", 1), ("b", 1)])
    assert [held.takes("a", 1) for _ in range(4)] == [False, False, True, True]
    assert held.takes("a", 2) and not held.takes("b", 1)


def test_numbers_of_rounds_and_attacks(record: Any, line: Any) -> None:
    assert of_round(record(1)) == {
        "train_loss": 0.5,
        "test_accuracy": 0.1,
        "seconds": 0.5,
        "clients": 2,
        "dropouts": 1,
        "skipped": 0,
        "secure/survivors": 2,
        "secure/clipped": 0,
    }, "not the infinite epsilon, nor the test loss that was not measured"
    scores = of_attack(line(1, adversary="a b/c", client=None, clients=[2, 5, 3]))
    assert scores["attacks/a_b_c/sum-of-3-from-2/psnr"] == 21
    assert of_attack(line(1, status="failed", psnr=None))["attacks/geiping/client-0/failed"] == 1


def test_settings_are_flat() -> None:
    data = {"clients": {"count": 3}, "adversaries": [{"id": "x", "rounds": [1, 2]}], "long": ["word"] * 999, "none": []}
    found = flat(data)
    assert found.pop("long").endswith("...")  # type: ignore[union-attr]
    assert found == {"clients.count": 3, "adversaries.0.id": "x", "adversaries.0.rounds": "[1, 2]", "none": "[]"}


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_said_with_the_remedy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    file = tmp_path / "x.toml"
    file.write_text(f'rounds = 1\ndata = "digits"\nmodel = "mlp"\n[logging]\nsinks = [\n    "{name}",\n]\n')
    assert read(str(file)).logging.sinks[0].name == name
    monkeypatch.setattr(base, "version", missing)
    with pytest.raises(InputError) as caught:
        read(str(file))
    (problem,) = caught.value.problems
    assert (
        problem.startswith(f"{file}:6: logging.sinks[0]: ") and f"pip install 'fedsim-adversarial[{name}]'" in problem
    )


def test_settings_survive_the_run_folder() -> None:
    sinks = ["tensorboard", {"name": "mlflow", "tracking_uri": "http://x:1"}, {"name": "wandb", "project": "p"}]
    table = {"rounds": 1, "data": "digits", "model": "mlp", "logging": {"sinks": sinks}}
    experiment = from_table(table)
    assert from_table({**as_table(experiment)}) == experiment
    assert 'mode = "offline"' in as_toml(experiment), "no network unless the file asks for it"


def test_no_draw_is_taken_from_torch(made: Any, new_folder: Any, tmp_path: Path, record: Any, line: Any) -> None:
    before = torch.get_rng_state()
    warnings: list[str] = []
    with opened(made("tensorboard", "mlflow", "wandb"), new_folder(tmp_path / "run"), warnings.append) as sinks:
        sinks.round(record(0))
        sinks.attack(line(1))
    assert warnings == [] and torch.equal(before, torch.get_rng_state())
