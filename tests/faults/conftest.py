"""The faults that a run must survive, counted: `make faults` prints survived / tried by kind."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import strangers
from crashing import Silent, experiments
from faulty import WHOLE, Tally

from fedsim import plugins
from fedsim.runs import RunFolder
from fedsim.simulation import simulate


@pytest.fixture(scope="session", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Forks of this process have what it has imported and loaded by then."""
    simulate(experiments()["stateful"], RunFolder.create(tmp_path_factory.mktemp("warm") / "run"), Silent())


@pytest.fixture(scope="module")
def strangers_installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the plugins of `strangers`, which all processes find."""
    folder = tmp_path_factory.mktemp("site")
    metadata = folder / "strangers-1.0.dist-info"
    metadata.mkdir()
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 1.0\n")
    metadata.joinpath("entry_points.txt").write_text(strangers.ENTRY_POINTS)
    for name, text in {"strangers": Path(strangers.__file__).read_text(), **strangers.MODULES}.items():
        folder.joinpath(f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        plugins._named.cache_clear()
        yield folder
    plugins._named.cache_clear()
    for name in strangers.MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    """`tally(kind, tried=1)`: called first; what is tried in a test that passes has been survived."""

    def note(kind: str, tried: int = 1) -> None:
        record_property("fault", [kind, tried])

    return note


def pytest_terminal_summary(terminalreporter: Any) -> None:
    tried: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            for name, value in getattr(report, "user_properties", ()):
                if name == "fault" and report.when == "call":
                    kind, count = value
                    tried[kind] += count
                    survived[kind] += count * (outcome == "passed")
    if not tried:
        return
    terminalreporter.section("faults survived / tried" if WHOLE else "faults survived / tried (the short part)")
    for kind in sorted(tried):
        terminalreporter.write_line(f"{survived[kind]:6} / {tried[kind]:<6} {kind}")
    terminalreporter.write_line(f"{sum(survived.values()):6} / {sum(tried.values()):<6} all")
