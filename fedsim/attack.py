"""One attack: a job that waits to be run, and whose data it is after."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.adversaries.base import Observation
from fedsim.experiment import AdversaryEntry
from fedsim.report.formats import numbered


@dataclass(frozen=True)
class Attack:
    """A job waiting to be run: whose it is, its address, and whose data of which round it is after.

    clients: one, or several where only the sum of their updates was shown. rounds: one, or several where the answers
    of several jobs were put together (`combined`); `job` is then the address of all of them. answer: its name, where a
    plugin gives several.
    """

    entry: AdversaryEntry
    job: str
    clients: tuple[int, ...]
    rounds: tuple[int, ...]
    combined: bool = False
    answer: str = ""

    @property
    def title(self) -> str:
        """The adversary's id, with the answer's name behind it."""
        return f"{self.entry.id}-{self.answer}" if self.answer else self.entry.id

    @property
    def round(self) -> int:
        """The last one."""
        return self.rounds[-1]

    @property
    def name(self) -> str:
        """For a screen."""
        return f"{self.title}, {self.whom}"

    @property
    def whom(self) -> str:
        """Whose data of which round."""
        return f"{numbered(list(self.clients), 'client')}, {numbered(list(self.rounds), 'round')}"


def clients_of(seen: Observation) -> tuple[int, ...]:
    """Whose data an observation is about."""
    return tuple(seen.facts.get("clients", (seen.client,)))
