"""What runs an adversary's attacks, wherever that is, and what becomes of one that fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedsim.adversaries.base import Reconstruction
from fedsim.progress import Listener


@dataclass(frozen=True)
class Failure:
    """Why there is no answer.

    kind: the type of the plugin's error; empty where it was none of the plugin's own, as when its process was killed.
    """

    kind: str
    text: str

    def __str__(self) -> str:
        """`TypeError: ...`, as attacks.jsonl has it."""
        return f"{self.kind}: {self.text}" if self.kind else self.text

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """What an exception says."""
        return cls(type(error).__name__, str(error))


@dataclass(frozen=True)
class Lost(Failure):
    """The process was killed, or could not even begin. The plugin said nothing, and to try again may help."""


@dataclass(frozen=True)
class Expected:
    """An attack that will be asked for: the arguments of `Attacker.attack`."""

    job: str
    seed: int
    tell: Listener


Found = Reconstruction | Failure
"""What came of an attack: an answer of the right form (`answers.check_form`), or why there is none."""


class Attacker(Protocol):
    """Runs the attacks of one adversary.

    Jobs are named by their addresses. seed: of a job's generator, already derived for that job alone. tell: hears how
    far the attack is.
    """

    def ready(self) -> None:
        """Make everything ready, so that an attack's own time can be measured. Never raises."""
        ...

    def batches(self) -> bool | Failure:
        """Whether the plugin would rather have all of its jobs at once."""
        ...

    def expect(self, works: Sequence[Expected], together: Listener | None = None) -> bool:
        """These will be asked for, in this order: each by `attack`, or, where there is a listener for all of them
        `together`, all by one `attack_many`. Whoever can work ahead begins now, and says so by True; an attack that has
        begun tells its listener so. May be called any number of times. Never raises.
        """
        ...

    def attack(self, job: str, seed: int, tell: Listener) -> Found:
        """Run one job."""
        ...

    def attack_many(self, jobs: Sequence[str], seeds: Sequence[int], tell: Listener) -> list[Found] | Failure:
        """Run jobs together: an answer for each."""
        ...

    def combine(
        self, parts: Sequence[tuple[str, Reconstruction]], seed: int, tell: Listener
    ) -> Mapping[str, Found] | Failure:
        """Put the answers of jobs together: one, by the empty name, or several by theirs."""
        ...

    def took(self, job: str = "") -> float | None:
        """The seconds that the last attack on a job took where it was run, its share where it was one of several that
        ran together; with no job, those of the last `combine`. None: as many as whoever asked for it waited.
        """
        ...

    def close(self) -> None:
        """End whatever still runs."""
        ...
