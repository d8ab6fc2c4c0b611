"""The faults that a run must survive, counted: `make faults` prints survived / tried by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from faulty import WHOLE, Tally


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
