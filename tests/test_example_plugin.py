"""A stranger's wheel: built, installed into a folder of its own, and used without editing anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

EXPERIMENT = """
rounds = 1
[data]
name = "digits"
[model]
name = "mlp"
[clients]
count = 2
algorithm = "fedsgd"
batch_size = 4
defenses = ["sign_only"]
[scores]
lpips = "off"
[[adversaries]]
name = "gray"
vantage = "link"
targets = [0]
rounds = [1]
level = 0.25
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the plugin installed."""
    folder = tmp_path_factory.mktemp("plugin")
    source = folder / "source"
    # Built from a copy: setuptools leaves its build folder beside the sources.
    subprocess.run(["cp", "-r", str(ROOT / "experiments" / "example_plugin"), str(source)], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)], check=True
    )
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return {**os.environ, "PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}


def fedsim(environment: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedsim", *arguments]
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_plugin_is_listed_with_its_origin(installed: dict[str, str], tmp_path: Path) -> None:
    done = fedsim(installed, tmp_path, "list", "adversaries", "--json")
    (gray,) = [entry for entry in json.loads(done.stdout)["adversaries"] if entry["name"] == "gray"]
    assert gray["from"] == "fedsim-example-plugin 0.1.0"
    assert gray["what"].startswith("Guesses an even gray")


def test_adversary_and_defense_run_and_are_scored(installed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "gray.toml").write_text(EXPERIMENT)
    done = fedsim(installed, tmp_path, "run", "gray.toml", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("report.html")
    (line,) = [json.loads(text) for text in (tmp_path / "run" / "attacks.jsonl").read_text().splitlines()]
    assert (line["adversary"], line["images"], line["batch"], line["status"]) == ("gray", 4, 4, "done")
    assert 5 < line["psnr"] < 15
    assert line["label_accuracy"] is None
    assert [defense["name"] for defense in line["defenses"]] == ["sign_only"]
    again = fedsim(installed, tmp_path, "attack", "run", "--adversary", "gray", "--set", "level=0.9")
    assert again.returncode == 0, again.stderr
    lines = [json.loads(text) for text in (tmp_path / "run" / "attacks.jsonl").read_text().splitlines()]
    assert [one["adversary"] for one in lines] == ["gray", "gray-2"]
    assert lines[1]["psnr"] != lines[0]["psnr"]


def test_its_settings_are_checked_like_ours(installed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "gray.toml").write_text(EXPERIMENT.replace("level = 0.25", "level = 2"))
    done = fedsim(installed, tmp_path, "run", "gray.toml")
    assert done.returncode == 2
    assert "gray.toml:19: adversaries[0].level: must be at most 1.0, not 2" in done.stderr
    assert "Traceback" not in done.stderr


def test_its_own_tests_pass_as_a_third_party_runs_them(installed: dict[str, str], tmp_path: Path) -> None:
    """With the installed plugin, in a folder of their own, and without fedsim's own settings of pytest."""
    copy = tmp_path / "test_conformance.py"
    copy.write_text((ROOT / "experiments" / "example_plugin" / "tests" / "test_conformance.py").read_text())
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(copy)]
    done = subprocess.run(
        command, env=installed, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert "ConformanceWarning" not in done.stdout


def test_without_it_the_name_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "gray.toml").write_text(EXPERIMENT)
    done = fedsim({**os.environ}, tmp_path, "check", "gray.toml")
    assert done.returncode == 2
    assert "no adversary is called 'gray'" in done.stderr
