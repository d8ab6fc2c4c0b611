"""The attacks by name, from an experiment file to the scores; and what a file that asks the impossible is answered.

Floors are below what was measured on several seeds, and far above a first guess (about 6 dB).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from asking import Answer, ask

Capture = pytest.CaptureFixture[str]
Run = Callable[..., list[dict[str, Any]]]


def table(model: dict[str, Any], adversary: dict[str, Any], data: str = "digits", **clients: Any) -> dict[str, Any]:
    """An experiment of one round, in which both of two clients are attacked from the link."""
    entry = {"vantage": "link", "targets": [0, 1], "rounds": [1], **adversary}
    clients = {"count": 2, "algorithm": "fedsgd", "batch_size": 1, **clients}
    return {
        "seed": 1,
        "rounds": 1,
        "data": {"name": data},
        "model": model,
        "clients": clients,
        "server": {"learning_rate": 0.1} if clients["algorithm"] == "fedsgd" else {},
        "scores": {"lpips": "off"},
        "runtime": {"threads": 1, "device": "cpu"},
        "adversaries": [entry],
    }


@pytest.fixture
def run(tmp_path: Path, capsys: Capture) -> Run:
    """`run(table(...))`: what attacks.jsonl says of each client, after a run that went well."""

    def made(content: dict[str, Any]) -> list[dict[str, Any]]:
        file, out = tmp_path / "experiment.toml", tmp_path / "run"
        file.write_text(tomli_w.dumps(content))
        answer = ask(capsys, "run", str(file), "--out", str(out))
        assert (answer.code, answer.err) == (0, "")
        lines = [json.loads(line) for line in (out / "attacks.jsonl").read_text().splitlines()]
        assert [line["client"] for line in lines] == [0, 1]
        return lines

    return made


@dataclass(frozen=True)
class Case:
    """psnr: in dB, below what the worst image of each client came to. labels: whether the attack finds them all."""

    content: dict[str, Any]
    psnr: float
    labels: bool = False
    status: tuple[str, ...] = field(default=("done",))


LENET = {"name": "lenet", "width": 6}
QUERY_ALONE = {"name": "vit", "patch": 2, "dim": 24, "heads": 4, "norm": "post", "first_skip": False}
STANDARD = {"name": "vit", "patch": 4, "dim": 48}
SMOOTH = {"name": "mlp", "hidden": [32], "activation": "tanh"}
FOUR_STEPS = {"algorithm": "fedavg", "local_steps": 4, "learning_rate": 0.05}

CASES = {
    # L-BFGS ends by itself once nothing is left to gain.
    "dlg": Case(table(LENET, {"name": "dlg", "iterations": 150}), 60, True, ("done", "plateau")),
    "idlg": Case(table(LENET, {"name": "idlg", "iterations": 150}), 60, True, ("done", "plateau")),
    "r_gap": Case(table({"name": "cnn6"}, {"name": "r_gap"}), 80, True),
    "spear": Case(table({"name": "mlp", "hidden": [100]}, {"name": "spear"}, batch_size=4), 80, True),
    "phong": Case(table({"name": "mlp", "hidden": [32]}, {"name": "phong"}), 80),
    "april, embedding": Case(table(QUERY_ALONE, {"name": "april"}), 60),
    "april, span": Case(table(STANDARD, {"name": "april", "solve": "span"}), 80),
    # Not digits: 64 pixels are too few to tell what is independent.
    "cocktail_party": Case(
        table(
            {"name": "mlp", "hidden": [64]},
            {"name": "cocktail_party", "iterations": 2000},
            data="mnist5k",
            batch_size=4,
        ),
        45,
    ),
    "geiping_fedavg": Case(
        table(SMOOTH, {"name": "geiping_fedavg", "knows": ["labels"], "iterations": 300, "tv": 0.0, "engine": "eager"})
        | {"clients": {"count": 2, "batch_size": 1, **FOUR_STEPS}, "server": {}},
        50,
        True,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_attack_recovers_what_the_clients_had(name: str, run: Run) -> None:
    case = CASES[name]
    batch = case.content["clients"]["batch_size"] * case.content["clients"].get("local_steps", 1)
    for line in run(case.content):
        assert line["status"] in case.status
        assert line["images"] == line["batch"] == batch
        assert min(line["per_image"]["psnr"]) > case.psnr
        assert line.get("psnr_before", 0.0) < 22, "the floor of those that start from a guess"
        if case.labels:
            assert line["label_accuracy"] == 1


def test_labels_alone_are_restored(run: Run) -> None:
    for line in run(table({"name": "mlp", "hidden": [32]}, {"name": "label_inference"}, batch_size=8)):
        assert (line["status"], line["images"], line["psnr"], line["label_accuracy"]) == ("done", 0, None, 1)


def test_following_the_local_steps_beats_taking_them_for_one_gradient(run: Run) -> None:
    """Else the case above would say nothing of the unrolling."""
    content = CASES["geiping_fedavg"].content
    entry = content["adversaries"][0]
    for line in run({**content, "adversaries": [{**entry, "local_steps": "one_gradient"}]}):
        assert line["psnr"] < CASES["geiping_fedavg"].psnr
        assert "one gradient" in line["notes"]["model"]


# --- what cannot work, said before round 0 -------------------------------------------------------------------------


def refused(answer: Answer, *words: str) -> None:
    """Exit code 2 and one line, with the place and every one of the words; no other output."""
    assert (answer.code, len(answer.problems)) == (2, 1), answer
    for word in ("adversaries[0]", *words):
        assert word in answer.problems[0], answer.problems[0]


def written(content: dict[str, Any], folder: Path) -> str:
    file = folder / "experiment.toml"
    file.write_text(tomli_w.dumps(content))
    return str(file)


KNOWING = {"knows": ["labels"]}
BY_FILE: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "r_gap, several images": (
        table({"name": "cnn6"}, {"name": "r_gap"}, batch_size=2),
        ("'r_gap'", "works on one image", "batch_size is 2", "set it to 1"),
    ),
    "april, several images": (
        table(STANDARD, {"name": "april"}, batch_size=2),
        ("'april'", "works on one image", "batch_size is 2", "set it to 1"),
    ),
    "huang without BatchNorm": (
        table({"name": "mlp"}, {"name": "huang", **KNOWING}),
        ("'huang'", '"exact"', "batch_statistics", "no BatchNorm", 'batchnorm = "none"'),
    ),
    "yin without BatchNorm": (
        table({"name": "mlp"}, {"name": "yin"}),
        ("'yin'", '"infer"', "running_statistics", "no BatchNorm", 'batchnorm = "none"'),
    ),
    "geiping, silent on BatchNorm": (
        table({"name": "preact_resnet18"}, {"name": "geiping", **KNOWING}),
        ("'geiping'", "the model has BatchNorm", "choose exact, own_statistics, infer or proxy"),
    ),
    "idlg, several images": (
        table(LENET, {"name": "idlg"}, batch_size=2),
        ("'idlg'", "works on one image", "batch_size is 2", "llg"),
    ),
    "unrolled, on a sum": (
        table(SMOOTH, {"name": "geiping_fedavg", "vantage": "server", "aggregate": True, **KNOWING}, **FOUR_STEPS),
        ("'geiping_fedavg'", "the sum of several", 'local_steps = "one_gradient"'),
    ),
    **{
        f"{name}, several local steps": (
            table(model, {"name": name}, **FOUR_STEPS),
            (f"'{name}'", "reads one gradient", "several local steps", 'algorithm = "fedsgd"', "geiping_fedavg"),
        )
        for name, model in {
            "r_gap": {"name": "cnn6"},
            "spear": {"name": "mlp"},
            "phong": {"name": "mlp"},
            "cocktail_party": {"name": "mlp"},
            "april": STANDARD,
        }.items()
    },
}


@pytest.mark.parametrize("case", BY_FILE)
@pytest.mark.parametrize("command", ["check", "run"])
def test_what_the_file_shows_to_be_impossible_is_refused(
    command: str, case: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, words = BY_FILE[case]
    monkeypatch.chdir(tmp_path)
    answer = ask(capsys, command, written(content, tmp_path))
    refused(answer, *words)
    assert "experiment.toml:" in answer.err, "the line of the file is named"
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.toml"]


BY_MODEL: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "r_gap, max pooling": (
        table({"name": "convnet6", "width": 4, "hidden": 16}, {"name": "r_gap"}),
        ("'r_gap'", "'convnet6'", "'pool1', MaxPool2d", "cannot be inverted", "use the model cnn6, lenet or mlp"),
    ),
    "r_gap, no chain of layers": (
        table(STANDARD, {"name": "r_gap"}),
        ("'r_gap'", "'vit'", "VisionTransformer is none", "use the model cnn6, lenet or mlp"),
    ),
    "spear, no ReLU": (
        table({"name": "mlp", "activation": "tanh"}, {"name": "spear"}),
        ("'spear'", "'mlp'", "needs a ReLU", "'act1' (Tanh)", 'activation = "relu"'),
    ),
    "phong, a convolution first": (
        table(LENET, {"name": "phong"}),
        ("'phong'", "'lenet'", "'conv1' (Conv2d) comes first", '"mlp"'),
    ),
    "cocktail_party, more images than units": (
        table({"name": "mlp", "hidden": [8]}, {"name": "cocktail_party"}, batch_size=16),
        ("'cocktail_party'", "16 images", "fc1 has 8", "smaller batch_size"),
    ),
    "april, another model": (
        table({"name": "mlp"}, {"name": "april"}),
        ("'april'", "'mlp'", "first self-attention", 'model.name = "vit"'),
    ),
    "april, the paper's equations on a standard transformer": (
        table(STANDARD, {"name": "april"}),
        ("'april'", "norm1 (LayerNorm)", 'solve = "span"'),
    ),
    "labels by a bias that is not there": (
        table({"name": "cnn6"}, {"name": "geiping", "labels": "bias"}),
        ("'geiping'", "labels by bias", "has no bias", "llg"),
    ),
    "label_inference, a bias that is not there": (
        table({"name": "cnn6"}, {"name": "label_inference", "method": "ilrg"}),
        ("'label_inference'", "labels by ilrg", "has no bias", "llg"),
    ),
    "label_inference, one label of several": (
        table({"name": "mlp"}, {"name": "label_inference", "method": "idlg"}, batch_size=2),
        ("'label_inference'", "labels by idlg", "batch_size is 2", "bias"),
    ),
    "more labels than classes": (
        table({"name": "mlp"}, {"name": "label_inference", "method": "yin"}, batch_size=16),
        ("'label_inference'", "labels by yin", "16 images of 10 classes", "llg"),
    ),
    "a CUDA graph without CUDA": (
        table({"name": "mlp"}, {"name": "geiping", "engine": "cudagraph", **KNOWING}),
        ("'geiping'", 'engine = "cudagraph"', "needs a CUDA device", '"auto"'),
    ),
}


@pytest.mark.parametrize("case", BY_MODEL)
def test_what_the_built_model_shows_to_be_impossible_is_refused_before_round_0(
    case: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, words = BY_MODEL[case]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file, out = written(content, tmp_path), tmp_path / "run"
    answer = ask(capsys, "run", file, "--out", str(out))
    refused(answer, *words)
    assert "round 0" not in answer.out
    assert not out.exists(), "the name stays free for the next try"
