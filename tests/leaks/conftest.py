"""The data with canaries, and a spy that attack processes find by its name, as they find any plugin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from leaking import SPY, Federation

from fedsim import plugins


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Made once: it is the same for every experiment."""
    return Federation(tmp_path_factory.mktemp("leaks"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The spy is installed."""
    metadata = tmp_path / "site" / "spies-1.0.dist-info"
    metadata.mkdir(parents=True)
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: spies\nVersion: 1.0\n")
    metadata.joinpath("entry_points.txt").write_text(f"[fedsim.adversaries]\n{SPY} = spies:Spy\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    plugins._named.cache_clear()
    yield
    plugins._named.cache_clear()
