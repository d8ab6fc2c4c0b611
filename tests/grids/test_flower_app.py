"""What Flower needs for `flwr run`: the bundle builds, holds no copy of the code, and the apps are where it says."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

ROOT = Path(__file__).parents[2]


def test_the_bundle_builds_and_leaves_the_code_to_the_installation(tmp_path: Path) -> None:
    flwr = Path(sys.executable).parent / "flwr"
    done = subprocess.run([flwr, "build", "--app", ROOT], cwd=tmp_path, capture_output=True, text=True, check=False)
    bundles = list(tmp_path.glob("*.fab"))
    assert len(bundles) == 1, done.stdout + done.stderr
    names = zipfile.ZipFile(bundles[0]).namelist()
    assert "pyproject.toml" in names
    assert not [name for name in names if name.endswith(".py")]


def test_the_apps_are_where_pyproject_says() -> None:
    parts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["components"]
    for key, kind in (("serverapp", ServerApp), ("clientapp", ClientApp)):
        module, _, name = parts[key].partition(":")
        assert isinstance(getattr(importlib.import_module(module), name), kind)
