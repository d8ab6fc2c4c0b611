"""`fedsim attack`: captures that do not fit are told apart before anything is attacked or written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from asking import ask

from fedsim import plugins
from fedsim.adversaries.inversion.recipes.label_inference import LabelInference

Capture = pytest.CaptureFixture[str]
Make = Callable[..., Path]

EXPERIMENT = """
seed = 1
rounds = 1
[data]
name = "digits"
[model]
name = "mlp"
hidden = [32]
activation = "tanh"
[clients]
count = 3
{clients}
[server]
learning_rate = 0.1
[scores]
lpips = "off"
[[adversaries]]
name = "label_inference"
vantage = "server"
targets = [0, 1]
rounds = [1]
aggregate = true
[[adversaries]]
id = "single"
name = "label_inference"
vantage = "link"
targets = [2]
rounds = [1]
knows = ["labels"]
"""
FEDSGD = 'algorithm = "fedsgd"\nbatch_size = {}'
FEDAVG = 'algorithm = "fedavg"\nbatch_size = 4\nlocal_steps = 2\nlearning_rate = 0.1'


@pytest.fixture
def made(tmp_path: Path, capsys: Capture) -> Make:
    """`made(FEDAVG)`: a finished run with a sum of two clients and a single one."""

    def run(clients: str) -> Path:
        (tmp_path / "x.toml").write_text(EXPERIMENT.format(clients=clients))
        answer = ask(capsys, "run", str(tmp_path / "x.toml"), "--out", str(tmp_path / "run"))
        assert answer.code == 0, answer
        return tmp_path / "run"

    return run


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("clients", "plugin", "reason"),
    [
        (FEDSGD.format(8), "r_gap", "it works on one image, but"),
        (FEDSGD.format(8), "april", "it works on one image, but"),
        (FEDSGD.format(4), "spear", "it needs a ReLU"),
        (FEDAVG, "phong", "it reads one gradient, but the clients send what several local steps came to"),
    ],
)
def test_where_nothing_fits_one_sentence_says_why_and_nothing_is_touched(
    made: Make, capsys: Capture, clients: str, plugin: str, reason: str
) -> None:
    run = made(clients)
    before = contents(run)
    answer = ask(capsys, "attack", str(run), "--adversary", plugin)
    assert (answer.code, answer.out, len(answer.problems)) == (2, "", 1)
    assert answer.err.startswith(f"adversary '{plugin}' fits no capture of {run}: ")
    assert reason in answer.err
    assert contents(run) == before


def test_captures_that_do_not_fit_are_left_out_and_the_others_attacked(made: Make, capsys: Capture) -> None:
    run = made(FEDSGD.format(1))
    answer = ask(capsys, "attack", str(run), "--adversary", "r_gap", "--json")
    said = [json.loads(line) for line in answer.out.splitlines()]
    assert answer.code == 0
    assert [line["text"] for line in said if line["event"] == "warning"] == [
        "'r_gap' leaves out 1 of 2 captures: it works on one image, but the sum of 2 clients' updates holds more"
    ]
    assert [line["clients"] for line in said[-1]["attacks"]] == [[2]]
    noted = json.loads((run / "manifest.json").read_text())["who_sees_what"][-1]
    assert (noted["adversary"], noted["targets"], noted["knows"]) == ("r_gap", [2], ["the labels of the private batch"])


def test_what_is_not_granted_is_left_out_and_said(made: Make, capsys: Capture) -> None:
    run = made(FEDSGD.format(2))
    answer = ask(capsys, "attack", str(run), "--adversary", "geiping", "--set", "iterations=3")
    assert answer.code == 0
    assert "'geiping' leaves out 1 of 2 captures: it does not grant what the adversary needs" in answer.err


def test_sums_are_attacked_as_sums_and_the_manifest_says_so(made: Make, capsys: Capture) -> None:
    run = made(FEDSGD.format(4))
    answer = ask(capsys, "attack", str(run), "--adversary", "label_inference", "--set", "method=llg", "--id", "again")
    assert (answer.code, answer.err) == (0, "")
    lines = [json.loads(line) for line in (run / "attacks.jsonl").read_text().splitlines()]
    assert sorted(line["clients"] for line in lines if line["adversary"] == "again") == [[0, 1], [2]]
    noted = json.loads((run / "manifest.json").read_text())["who_sees_what"][-1]
    assert "the sum of the targeted clients' updates (after their defenses)" in noted["sees"]
    assert "each targeted client's update (after the client's defenses)" in noted["sees"]


def test_a_client_with_fewer_images_than_a_batch_is_taken_as_it_is(made: Make, capsys: Capture) -> None:
    """The objection goes by what was captured, as far as that is known."""
    run = made(FEDSGD.format(1))
    experiment = run / "experiment.toml"
    experiment.write_text(experiment.read_text().replace("batch_size = 1", "batch_size = 8"))
    assert ask(capsys, "attack", str(run), "--adversary", "r_gap").code == 0


@dataclass(frozen=True)
class Odd(LabelInference):
    """Fails in ways of its own."""

    fault: str = ""

    @property
    def powers(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"alter_model"}) if self.fault == "powers" else frozenset()

    def capture(self, seen: Any) -> Any:
        if self.fault == "raises" or (self.fault == "raises on a sum" and "clients" in seen.facts):
            raise RuntimeError("no")
        return [] if self.fault == "nothing" else super().capture(seen)


class NoAdversary:
    powers: ClassVar[frozenset[str]] = frozenset()


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("powers", 2, "needs the power alter_model, but a run that is over cannot be altered"),
        ("raises", 1, "made no job of the captures"),
        ("nothing", 1, "made no job of the captures"),
        ("raises on a sum", 0, "capture of clients 0 and 1 in round 1 failed: RuntimeError: no"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_answered_in_words(
    made: Make, capsys: Capture, monkeypatch: pytest.MonkeyPatch, fault: str, code: int, said: str
) -> None:
    run = made(FEDSGD.format(4))
    experiment = run / "experiment.toml"  # another process would load what is installed
    experiment.write_text(experiment.read_text().replace('isolation = "process"', 'isolation = "none"'))
    before = contents(run)
    load = plugins.load
    monkeypatch.setattr(plugins, "load", lambda kind, name: Odd if name == "geiping" else load(kind, name))
    answer = ask(capsys, "attack", str(run), "--adversary", "geiping", "--set", f"fault={fault}")
    assert answer.code == code
    assert said in answer.err
    assert "Traceback" not in answer.err
    assert (contents(run) == before) == (code != 0)
