"""An attack that returns labels and no images, all the way through a run; and what else a plugin may not return."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim import answers, scoring
from fedsim.adversaries.base import Reconstruction
from fedsim.cli import main
from fedsim.protocol import Batch

EXPERIMENT = """
seed = 1
rounds = 1
[data]
name = "digits"
[model]
name = "mlp"
hidden = [32]
[clients]
count = 2
algorithm = "fedsgd"
batch_size = 8
[server]
learning_rate = 0.1
[scores]
lpips = "off"
[[adversaries]]
name = "label_inference"
vantage = "link"
targets = [0, 1]
rounds = [1]
method = "METHOD"
"""


@pytest.mark.parametrize("method", ["ilrg", "llg_model"])
def test_a_run_scores_and_reports_labels_alone(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = tmp_path / "labels.toml", tmp_path / "run"
    file.write_text(EXPERIMENT.replace("METHOD", method))
    assert main(["run", str(file), "--out", str(run)]) == 0
    assert "after the labels alone, no images" in capsys.readouterr().out
    found = [json.loads(line) for line in (run / "attacks.jsonl").read_text().splitlines()]
    assert [line["client"] for line in found] == [0, 1]
    for line in found:
        assert (line["status"], line["images"], line["batch"], line["picture"]) == ("done", 0, 8, None)
        assert line["psnr"] is line["ssim"] is line["lpips"] is None
        assert line["label_accuracy"] >= 0.875
    assert not list((run / "reconstructions").glob("*.png"))
    assert "No image was reconstructed; " in (run / "report.html").read_text()


def test_a_method_that_does_not_fit_is_refused_before_round_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "labels.toml"
    file.write_text(EXPERIMENT.replace("METHOD", "idlg"))
    assert main(["run", str(file), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "labels by idlg" in said
    assert "or infer the labels by bias" in said


def test_labels_are_scored_with_multiplicity() -> None:
    truth = Batch(torch.zeros(4, 1, 2, 2), torch.tensor([1, 1, 2, 3]))
    fields = scoring.score_labels(torch.tensor([1, 2, 2, 3]), truth, "off")
    assert fields["label_accuracy"] == 0.75
    images = scoring.score(torch.zeros(4, 1, 8, 8), None, Batch(torch.zeros(4, 1, 8, 8), truth.labels), "off").fields
    assert fields.keys() == images.keys()


@pytest.mark.parametrize(
    ("images", "labels", "why"),
    [
        (None, None, "neither images nor labels"),
        (None, torch.zeros(0, dtype=torch.int64), "neither images nor labels"),
        (None, torch.tensor([0.5, 0.5]), "whole numbers"),
        (None, torch.zeros((2, 3), dtype=torch.int64), "whole numbers"),
        (None, torch.tensor([1, -1]), "whole numbers"),
        (None, [1, 2], "whole numbers"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([1]), "2 images, but 1 labels"),
        # The pairing with the truth picks the best of what it gets, so more than the batch holds would buy a score.
        (torch.zeros(3, 1, 8, 8), None, "3 images were returned for a batch of 2"),
        (None, torch.arange(10), "10 labels were returned for a batch of 2"),
    ],
)
def test_a_plugin_that_returns_something_else_has_failed(images: Any, labels: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        answers.check(Reconstruction(images, labels, 0.0, 0), (1, 8, 8), 2)


def test_labels_without_images_are_an_answer() -> None:
    answers.check(Reconstruction(None, torch.tensor([3, 3]), 0.0, 0), (1, 8, 8), 2)
