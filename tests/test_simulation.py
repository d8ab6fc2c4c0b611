"""Whole runs through the command line: what is in the run folder, and what happens when something goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fedsim.adversaries.inversion.recipes.matching import Geiping
from fedsim.cli import main
from fedsim.experiment_file import read

EXPERIMENT = """
seed = 1
rounds = 2
[data]
name = "digits"
[model]
name = "mlp"
hidden = [32]
activation = "tanh"
[clients]
count = 3
algorithm = "fedsgd"
batch_size = 2
[[clients.groups]]
members = [1]
defenses = [{ name = "gradient_pruning", ratio = 0.5 }]
[server]
learning_rate = 0.1
[scores]
lpips = "off"
[[adversaries]]
name = "geiping"
vantage = "link"
targets = [0, 1]
rounds = [1]
knows = ["labels", "defenses"]
iterations = 150
tv = 0.0
"""


INLINE = ["--set", "runtime.isolation=none"]
"""Another process would not have what a test patches."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(EXPERIMENT)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_the_files_of_the_design(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["run", str(file), "--out", str(run)]) == 0
    assert capsys.readouterr().out.rstrip().endswith(f"report: {run / 'report.html'}")
    assert [line["round"] for line in lines(run / "rounds.jsonl")] == [0, 1, 2]
    attacks = lines(run / "attacks.jsonl")
    assert [(line["client"], line["batch"], line["images"], line["status"]) for line in attacks] == [
        (0, 2, 2, "done"),
        (1, 2, 2, "done"),
    ]
    # A fully connected layer gives a small batch away; the first guess is the floor.
    assert attacks[0]["psnr"] > 20 > attacks[0]["psnr_before"]
    assert attacks[0]["label_accuracy"] == 1.0
    assert [defense["name"] for defense in attacks[1]["defenses"]] == ["gradient_pruning"]
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["status"], manifest["exit"], manifest["seed"]) == ("done", 0, 1)
    assert manifest["versions"]["flwr"].startswith("1.4")
    assert sum(client["examples"] for client in manifest["clients"]) == manifest["train_examples"]
    assert len(list((run / "captures").iterdir())) == len(list((run / "jobs").iterdir())) == 2
    assert all((run / line["picture"]).is_file() for line in attacks)
    assert read(str(run / "experiment.toml")) == read(str(file), ["name=small"])


def test_the_same_file_gives_the_same_bits(file: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert main(["run", str(file), "--out", str(tmp_path / name)]) == 0
    drop = {"seconds"}
    for kind in ("rounds.jsonl", "attacks.jsonl"):
        one, two = (
            [{key: value for key, value in line.items() if key not in drop} for line in lines(tmp_path / name / kind)]
            for name in ("one", "two")
        )
        assert one == two
    assert sorted(p.name for p in (tmp_path / "one" / "captures").iterdir()) == sorted(
        p.name for p in (tmp_path / "two" / "captures").iterdir()
    )


def test_the_captures_hold_no_image_of_the_truth(file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["run", str(file), "--out", str(run)]) == 0
    for truth in (run / "truth").iterdir():
        image = safetensors.torch.load_file(truth)["images"][0]
        row = max(image[0], key=lambda row: int(row.unique().numel()))
        canary = row.numpy().tobytes()
        assert canary in truth.read_bytes()
        for folder in ("captures", "jobs"):
            assert not any(canary in path.read_bytes() for path in (run / folder).iterdir())


def test_another_attack_on_the_captures(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["run", str(file), "--out", str(run)]) == 0
    before = lines(run / "attacks.jsonl")
    capsys.readouterr()
    command = ["attack", str(run), "--adversary", "geiping", "--set", "iterations=20", "--set", "aware=true", "--json"]
    assert main(command) == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [line["adversary"] for line in done["attacks"]] == ["geiping-2", "geiping-2"]
    assert lines(run / "attacks.jsonl")[:2] == before
    assert "worked afterwards" in json.loads((run / "manifest.json").read_text())["who_sees_what"][-1]["words"]


def test_an_attack_that_the_captures_do_not_grant_is_refused_by_item(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["run", str(file), "--out", str(run), "--set", 'adversaries.0.knows=["labels"]']) == 0
    assert main(["attack", str(run), "--adversary", "geiping", "--set", "aware=true"]) == 2
    assert "needs defenses, which no capture of" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["raises", "nan", "shape", "nothing"])
def test_a_plugin_that_fails_fails_alone(
    fault: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Geiping.attack

    def attack(self: Geiping, job: Any, device: Any, rng: Any) -> Any:
        found = honest(self, job, device, rng)
        if job.observations[0].client == 1:
            return found
        match fault:
            case "raises":
                raise RuntimeError("a bug in the plugin")
            case "nan":
                found.images.fill_(float("nan"))
            case "shape":
                return type(found)(torch.zeros(2, 3, 4, 4), None, 0.0, 1)
            case _:
                return None
        return found

    monkeypatch.setattr(Geiping, "attack", attack)
    run = tmp_path / "run"
    assert main(["run", str(file), "--out", str(run), *INLINE]) == 3
    assert [line["status"] for line in lines(run / "attacks.jsonl")] == ["failed", "done"]
    assert len(lines(run / "rounds.jsonl")) == 3
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["exit"] == 3
    assert "failed on client 0, round 1" in manifest["warnings"][0]


def test_a_capture_that_raises_does_not_end_the_training(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Geiping, "capture", lambda self, seen: 1 / 0)
    run = tmp_path / "run"
    assert main(["run", str(file), "--out", str(run)]) == 0
    assert len(lines(run / "rounds.jsonl")) == 3
    assert "capture of client 0 in round 1 failed: ZeroDivisionError" in (run / "manifest.json").read_text()


def test_an_interrupted_run_says_so_and_keeps_what_there_is(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def attack(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Geiping, "attack", attack)
    run = tmp_path / "run"
    assert main(["run", str(file), "--out", str(run), *INLINE]) == 130
    assert len(lines(run / "rounds.jsonl")) == 3
    assert json.loads((run / "manifest.json").read_text())["status"] == "interrupted"
    assert main(["report", str(run)]) == 0


def test_batchnorm_modes_in_a_federation(file: Path, tmp_path: Path) -> None:
    """Every mode runs on what the policy and the grants give it."""
    table = EXPERIMENT.replace('name = "mlp"\nhidden = [32]\nactivation = "tanh"', 'name = "resnet18"')
    file.write_text(table.replace("rounds = 2", "rounds = 1").replace("targets = [0, 1]", "targets = [0]"))
    cases = {"exact": "share_batch", "own_statistics": "local", "infer": "share_running", "proxy": "freeze"}
    for mode, policy in cases.items():
        knows = '["labels", "batch_statistics"]' if policy == "local" else '["labels"]'
        run = tmp_path / mode
        settings = [f"adversaries.0.batchnorm={mode}", f"clients.batchnorm={policy}", f"adversaries.0.knows={knows}"]
        command = [
            "run",
            str(file),
            "--out",
            str(run),
            "--set",
            "adversaries.0.iterations=2",
            "--set",
            "clients.count=2",
        ]
        assert main([*command, *(part for one in settings for part in ("--set", one))]) == 0
        (line,) = lines(run / "attacks.jsonl")
        assert (line["status"], line["iterations"]) == ("done", 2)


def test_a_model_from_elsewhere_that_does_not_fit_is_refused_before_round_0(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(
        EXPERIMENT.replace('name = "mlp"\nhidden = [32]\nactivation = "tanh"', 'name = "torchvision:resnet18"')
    )
    run = tmp_path / "run"
    code = main(["run", str(file), "--out", str(run)])
    assert code == 2
    assert "torchvision" in capsys.readouterr().err
    assert not run.exists(), "nothing was run, so the name stays free"
