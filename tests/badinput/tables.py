"""What a suite counts, as a table. No test is in here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from badinput.judging import Unclear

WHOLE = os.environ.get("FEDSIM_WHOLE") == "1"
"""Whether all of it is tried, as `make faults` does, and not the short version."""

SHOWN = 5
"""Failures that are told; the others are counted."""


@dataclass
class Tally:
    """What came of many cases, by kind. clear: the words of a judgement that is a clear error; any other is an answer
    that is right.
    """

    clear: tuple[str, ...]
    found: Counter[tuple[str, str]] = field(default_factory=Counter)
    cases: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def count(self, kinds: Iterable[str], how: str) -> None:
        """One case, that was spoiled in these ways."""
        self.cases[how] += 1
        for kind in set(kinds):
            self.found[kind, how] += 1

    def unclear(self, kinds: Iterable[str], number: int, why: Unclear) -> None:
        """One case that was answered in no way that will do."""
        self.count(kinds, "unclear")
        self.failures.append(f"{number}: {why}")

    def table(self, title: str) -> str:
        """`clear errors / tried`, by kind, and what the others were."""
        width = max((len(kind) for kind, _ in self.found), default=10)
        lines = [f"{title}: {self._line(self.cases)}"]
        for kind in sorted({kind for kind, _ in self.found}):
            ways = Counter({how: count for (one, how), count in self.found.items() if one == kind})
            lines.append(f"  {kind:{width}}  {self._line(ways)}")
        return "\n".join(lines)

    def check(self) -> None:
        """Fail with the first few failures."""
        more = f"\nand {len(self.failures) - SHOWN} more" if len(self.failures) > SHOWN else ""
        assert not self.failures, "\n".join(self.failures[:SHOWN]) + more

    def _line(self, ways: Counter[str]) -> str:
        errors, others = sum(ways[how] for how in self.clear), [how for how in sorted(ways) if how not in self.clear]
        rest = "".join(f", {ways[how]} {how}" for how in others)
        return f"{errors} clear errors / {ways.total()} tried{rest}"


def tried(tally: Tally, numbers: Iterable[int], play: Callable[[int], tuple[Iterable[str], Callable[[], str]]]) -> None:
    """Play cases. play: gets a number, and returns the kinds of the case and what judges it."""
    for number in numbers:
        kinds, judge = play(number)
        try:
            tally.count(kinds, judge())
        except Unclear as why:
            tally.unclear(kinds, number, why)
