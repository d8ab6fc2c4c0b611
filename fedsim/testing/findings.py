"""What a check finds, and how it is said: every point at once, each with its place, the reason and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Said = Iterator[tuple[str, str]]
"""What a rule says: (place, problem and remedy), once for each point that does not conform."""

Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Finding:
    """One point that does not conform.

    rule: the name of the function that states it. place: of the plugin, as `Gray.attack`. situations: in which of those
    that were tried it shows; empty where it does not depend on any.
    """

    rule: str
    place: str
    problem: str
    situations: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" (on {self.situations[0]}" if self.situations else ""
        more = len(self.situations) - 1
        where += f" and {more} other situation{'s' if more > 1 else ''})" if more > 0 else ")" if where else ""
        return f"{self.place}{where}: {self.problem} [{self.rule}]"


class ConformanceError(AssertionError):
    """A plugin does not keep its contract. `findings`: all points; `rules`: the names of the rules that they break."""

    def __init__(self, name: str, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        count = len(self.findings)
        lines = "\n".join(f"- {one}" for one in self.findings)
        super().__init__(f"{name} does not conform in {count} point{'s' if count > 1 else ''}:\n{lines}")

    @property
    def rules(self) -> frozenset[str]:
        """The rules that are broken."""
        return frozenset(one.rule for one in self.findings)


class ConformanceWarning(UserWarning):
    """Something that is recommended, not required."""


def examine(
    rules: Iterable[Callable[[Subject], Said]], subject: Subject, situation: str | None = None
) -> list[Finding]:
    """What all rules say of one subject."""
    where = () if situation is None else (situation,)
    return [Finding(rule.__name__, place, problem, where) for rule in rules for place, problem in rule(subject)]


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """The same point in several situations said once, in the order in which the points were found."""
    situations: dict[tuple[str, str, str], list[str]] = {}
    for one in findings:
        situations.setdefault((one.rule, one.place, one.problem), []).extend(one.situations)
    return [Finding(*key, tuple(dict.fromkeys(where))) for key, where in situations.items()]


def conclude(name: str, findings: Iterable[Finding]) -> None:
    """Raises ConformanceError if there is any finding."""
    found = merged(findings)
    if found:
        raise ConformanceError(name, found)
