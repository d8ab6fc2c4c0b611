"""Sinks with the real libraries: a run that is killed, gone on with, and read back out of each log."""

from __future__ import annotations

import io
import json
import signal
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from fedsim.runs import RunFolder, append_line
from fedsim.sinks.several import opened

LIBRARIES = ("tensorboard", "mlflow", "wandb")
ROUNDS = [0, 1, 2, 3, 4]

KILLED = """
import json, os, signal, sys, time
from pathlib import Path
from fedsim.experiment_file import read
from fedsim.runs import RoundRecord, RunFolder
from fedsim.sinks.several import opened

folder = RunFolder(Path(sys.argv[1]))
told = json.loads(sys.argv[2])
with opened(read(str(folder.experiment)), folder, print) as sinks:
    for number in told["rounds"]:
        sinks.round(RoundRecord(number, (0, 1), train_loss=1 / (number + 1), test_accuracy=number / 10))
    for line in told["attacks"]:
        sinks.attack(line)
    until = time.monotonic() + 60
    while any(lane.waiting for lane in sinks._lanes) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
"""
"""A process that tells all three sinks of four rounds and an attack, and dies."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, made: Any, new_folder: Any, record: Any, line: Any) -> RunFolder:
    """The folder of a run that was killed when it had told of rounds 0 to 3 and an attack on round 1, and was gone on
    with from its checkpoint of round 1.
    """
    from fedsim.experiment_file import as_toml

    folder = new_folder(tmp_path_factory.mktemp("sinks") / "run")
    experiment = made(*LIBRARIES)
    folder.experiment.write_text(as_toml(experiment))
    told = json.dumps({"rounds": [0, 1, 2, 3], "attacks": [line(1)]})
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder.path), told], capture_output=True, text=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    for number in (0, 1):
        append_line(folder.rounds, record(number).as_json())
    warnings: list[str] = []
    with opened(experiment, folder, warnings.append, resumed=2) as sinks:
        for number in (2, 3, 4):
            sinks.round(record(number))
        for number in (1, 2):
            sinks.attack(line(number))
        sinks.end("done", {"device": "cpu", "parameters": 12, "clients": [{"client": 0}]})
    assert warnings == []
    return folder


def test_tensorboard(run: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    losses = events.Scalars("train_loss")
    assert sorted(event.step for event in losses) == ROUNDS
    assert {event.step: event.value for event in losses}[3] == pytest.approx(0.25)
    assert sorted(event.step for event in events.Scalars("secure/survivors"))[-1] == 4
    assert [(event.step, event.value) for event in events.Scalars("attacks/geiping/client-0/psnr")] == [
        (1, 21),
        (2, 22),
    ]
    pictures = events.Images("attacks/geiping/client-0/picture")
    assert [picture.step for picture in pictures] == [1, 2]
    pixels = numpy.asarray(Image.open(io.BytesIO(pictures[1].encoded_image_string)))
    assert pixels.shape == (4, 6, 3) and tuple(pixels[0, 0]) == (80, 0, 255)
    (text,) = events.Tensors("experiment/text_summary")
    assert b"| model.name | `mlp` |" in text.tensor_proto.string_val[0]
    assert b"status: done" in events.Tensors("end/text_summary")[-1].tensor_proto.string_val[0]
    assert "epsilon" not in events.Tags()["scalars"], "an infinite one is no number"


def test_mlflow(run: RunFolder) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run.path / 'mlflow' / 'mlflow.db'}")
    (project,) = [one for one in client.search_experiments() if one.name != "Default"]
    assert project.name == "experiment"
    (found,) = client.search_runs([project.experiment_id])
    assert found.info.status == "FINISHED" and found.info.run_name == "run"
    losses = client.get_metric_history(found.info.run_id, "train_loss")
    assert sorted(metric.step for metric in losses) == ROUNDS
    assert {metric.step: metric.value for metric in losses}[3] == 0.25
    psnr = client.get_metric_history(found.info.run_id, "attacks/geiping/client-0/psnr")
    assert sorted((metric.step, metric.value) for metric in psnr) == [(1, 21.0), (2, 22.0)]
    assert found.data.params["clients.count"] == "10" and found.data.params["model.hidden"] == "[16]"
    assert found.data.tags["fedsim.device"] == "cpu" and "fedsim.clients" not in found.data.tags
    assert [file.path for file in client.list_artifacts(found.info.run_id, "pictures")] == [
        "pictures/r1.png",
        "pictures/r2.png",
    ]


def test_wandb(run: RunFolder) -> None:
    logs = sorted((run.path / "wandb").glob("wandb/offline-run-*/run-*.wandb"))
    assert len(logs) == 1, "made anew"
    records = list(wandb_records(logs[0]))
    ids = {one.run.run_id for one in records if one.WhichOneof("record_type") == "run"}
    assert ids == {json.loads((run.path / "wandb" / "run.json").read_text())["id"]}
    history = [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in one.history.item}
        for one in records
        if one.WhichOneof("record_type") == "history"
    ]
    losses = [(row["round"], row["train_loss"]) for row in history if "train_loss" in row]
    assert Counter(step for step, _ in losses) == Counter(ROUNDS)
    assert dict(losses)[3] == 0.25
    scores = "attacks/geiping/client-0/"
    assert [(row["round"], row[f"{scores}psnr"]) for row in history if f"{scores}psnr" in row] == [(1, 21), (2, 22)]
    media = list((run.path / "wandb").glob("wandb/offline-run-*/files/media/images/**/*.png"))
    assert len(media) == 2
    summary = {item.key: item.value_json for one in records for item in one.summary.update}
    assert json.loads(summary["status"]) == "done"
    settings = {item.key: item.value_json for one in records for item in one.run.config.update}
    assert settings["clients.count"] == "10"


def test_no_reports_to_makers(run: RunFolder) -> None:
    import os

    assert os.environ["WANDB_ERROR_REPORTING"] == "false" and os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_database_that_was_half_made_is_made_anew(tmp_path: Path, made: Any, new_folder: Any, record: Any) -> None:
    """As where a process is killed within the second that MLflow takes to make its tables."""
    import sqlite3

    from mlflow.tracking import MlflowClient

    folder = new_folder(tmp_path / "run")
    (folder.path / "mlflow").mkdir()
    with sqlite3.connect(folder.path / "mlflow" / "mlflow.db") as half:
        half.execute("CREATE TABLE secrets (secret_id VARCHAR(36) NOT NULL)")
    half.close()
    warnings: list[str] = []
    with opened(made("mlflow"), folder, warnings.append) as sinks:
        sinks.round(record(0))
    assert warnings == []
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path / 'mlflow' / 'mlflow.db'}")
    id_ = json.loads((folder.path / "mlflow" / "run.json").read_text())["id"]
    assert [metric.value for metric in client.get_metric_history(id_, "train_loss")] == [1.0]


def test_a_log_of_another_run_is_not_written_into(tmp_path: Path, made: Any, new_folder: Any, record: Any) -> None:
    """runs/x, logged to a folder of its own, removed and run again."""
    experiment = made({"name": "tensorboard", "folder": str(tmp_path / "boards")})
    warnings: list[str] = []
    for parent in ("one", "other"):
        with opened(experiment, new_folder(tmp_path / parent / "x"), warnings.append) as sinks:
            sinks.round(record(0))
    assert len(warnings) == 1 and "holds the log of another run" in warnings[0]
    assert len(list((tmp_path / "boards" / "x").iterdir())) == 1


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a transaction log: blocks of 32 KiB, after a header of 7 bytes, of chunks, each with a checksum,
    its length, and whether it is whole (1), or the first, a middle or the last part (2, 3, 4) of a record.
    """
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole = (whole if kind in (3, 4) else b"") + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found = wandb_internal_pb2.Record()
            found.ParseFromString(whole)
            yield found
