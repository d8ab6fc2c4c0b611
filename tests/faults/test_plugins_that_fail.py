"""Adversaries that raise, return nonsense or never end: each fails alone and is reported; training is as without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from crashing import begun, commanded, hashes, made, table
from faulty import Tally

from fedsim.errors import InputError
from fedsim.runs import read_lines

pytestmark = pytest.mark.usefixtures("strangers_installed")


def content(*adversaries: dict[str, Any], **runtime: Any) -> dict[str, Any]:
    """Three rounds with these adversaries and one that does no harm."""
    common = {"name": "trying", "vantage": "link", "targets": [0], "rounds": [1, 2]}
    return table(
        rounds=3,
        save_rounds=[3],
        model={"name": "mlp", "hidden": [8]},
        clients={"count": 3, "algorithm": "fedsgd", "batch_size": 2},
        server={"learning_rate": 0.1},
        adversaries=[{**common, "id": "good"}, *({**common, **one} for one in adversaries)],
        runtime={"threads": 1, **runtime},
    )


def training(run: Path) -> dict[str, str]:
    """SHA-256 of what training comes to, and of its truth."""
    return {name: value for name, value in hashes(run).items() if name.split("/")[0] not in ("attacks.jsonl", "jobs")}


FAULTS = {
    "attack": "TypeError: not this one",
    "NaN": "",
    "shape": "",
    "for ever": "it took longer than runtime.attack_timeout = 2 s, and was ended",
}
"""By what goes wrong in an attack, what its line says."""


def test_each_fails_alone(tmp_path: Path, tally: Tally) -> None:
    """All in one run: in capture, in the attack, with NaN, with a wrong shape, without an end, and at import there."""
    tally("plugin raises in capture or attack, returns NaN or a wrong shape, never ends", 5)
    alone, run = tmp_path / "alone", tmp_path / "run"
    bad = [{"id": fault.replace(" ", "_").lower(), "fault": fault, "rounds": [1]} for fault in (*FAULTS, "capture")]
    elsewhere = {"id": "elsewhere", "name": "elsewhere"}
    assert begun(made("alone", content()), alone).code == 0
    assert begun(made("bad", content(*bad, elsewhere, attack_timeout=2.0)), run).code == 3
    assert training(run) == training(alone)
    lines: dict[str, list[Any]] = {}
    for line in read_lines(run / "attacks.jsonl"):
        lines.setdefault(line["entry"], []).append(line)
    good = read_lines(alone / "attacks.jsonl")
    assert lines.pop("good") == good and len(good) == 2
    assert [line["status"] for line in lines.pop("elsewhere")] == ["failed"] * 2
    for fault, words in FAULTS.items():
        (line,) = lines.pop(fault.replace(" ", "_").lower())
        assert line["status"] == "failed" and words in line["error"], line
    assert not lines
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["status"], manifest["exit"]) == ("done", 3)
    said = " ".join(manifest["warnings"])
    for one in (*(bad_["id"] for bad_ in bad), "elsewhere"):
        assert f"'{one}'" in said, manifest["warnings"]
    assert "capture of client 0 in round 1 failed: KeyError" in said
    assert "OSError: this plugin finds no library here" in said


def test_one_that_raises_on_import_is_named_before_anything_is_run(tmp_path: Path, tally: Tally) -> None:
    tally("plugin raises on import")
    file = tmp_path / "broken.toml"
    with pytest.raises(InputError, match="broken"):
        made("broken", content({"name": "broken", "id": "broken"}))
    file.write_text(tomli_w.dumps(content({"name": "broken", "id": "broken"})))
    ended = commanded(tmp_path, "run", str(file), "--out", str(tmp_path / "run"))
    assert ended.code == 2 and "Traceback" not in ended.said
    assert "adversary 'broken' (from strangers 1.0) cannot be imported: RuntimeError: this plugin is" in ended.said
    assert not (tmp_path / "run").exists()
