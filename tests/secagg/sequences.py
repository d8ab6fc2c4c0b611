"""Random sequences of faults: drawn from a number, played again as printed, and made short. No test is in here.

A sequence is data: what a round is like, and a list of faults, each at one message. Everything a fault leaves open is
drawn from its own `salt`, so taking other faults out of the list does not change what it does.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product

from fedsim.secagg.plus import SecAggPlus

STAGES = ("keys", "shares", "train", "unmask")
"""The messages of a round, in order; at `train` a vector comes back."""


class Violation(AssertionError):
    """Something happened that a secure aggregation promises will not."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the message of a stage to or from a client, or at it. place: which client, in order."""

    kind: str
    round: int
    stage: str
    place: int
    salt: int


@dataclass(frozen=True)
class Script:
    """One sequence. number: what it was drawn from; ids, updates and the order of arrival depend on it."""

    number: int
    clients: int
    settings: SecAggPlus
    rounds: int
    faults: tuple[Fault, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """The clients' ids: not in a row, as where some clients of many are drawn."""
        return tuple(sorted(random.Random(f"ids {self.number}").sample(range(64), self.clients)))


@dataclass
class Tally:
    """What happened in many sequences. faults: those that took effect. worst: the longest sequence, in seconds."""

    sequences: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0

    def lines(self) -> str:
        """For a person to read."""
        parts = {"outcomes": self.outcomes, "faults": self.faults, "refused or closed": self.refused}
        told = [f"{self.sequences} sequences, the longest {self.worst:.2f} s"]
        for title, counts in parts.items():
            told += [f"{title}:", *(f"  {count:6d}  {name}" for name, count in counts.most_common())]
        return "\n".join(told)


@lru_cache
def possible(clients: int, server: str) -> tuple[tuple[int, int], ...]:
    """Every (neighbours, threshold) that `secagg+` accepts for so many clients, none of which is feared for."""
    found = []
    for neighbours, threshold in product(range(2, clients), range(2, clients + 1)):
        try:
            SecAggPlus(
                corrupt=0.0,
                dropout=0.0,
                neighbours=neighbours,
                threshold=threshold,
                server=server,  # type: ignore[arg-type]
            ).parameters(clients)
        except ValueError:
            continue
        found.append((neighbours, threshold))
    return tuple(found)


def drawn_clients(rng: random.Random) -> int:
    """3 to 20, small rounds more often: what a round costs grows with their square."""
    sizes = range(3, 21)
    return rng.choices(sizes, [size**-1.3 for size in sizes])[0]


def drawn_faults(
    rng: random.Random, kinds: Sequence[tuple[str, Sequence[str]]], rounds: int, clients: int, most: int
) -> tuple[Fault, ...]:
    """Up to `most` faults, few more often than many. kinds: (name, the stages at which it can be)."""
    found = []
    for _ in range(round(most * rng.random() ** 1.5)):
        kind, stages = rng.choice(kinds)
        # Early faults often end a round, so that later ones are never seen.
        stage = rng.choices(stages, [2 + STAGES.index(one) for one in stages])[0]
        found.append(Fault(kind, rng.randrange(rounds), stage, rng.randrange(clients), rng.randrange(2**16)))
    return tuple(found)


def shortest(script: Script, wrong: Callable[[Script], bool]) -> Script:
    """A sequence that still goes wrong, and no longer does with any one of its faults left out."""
    first = replace(script, rounds=1, faults=tuple(one for one in script.faults if not one.round))
    if wrong(first):
        script = first
    size = len(script.faults)
    while size and script.faults:
        size = min(size, len(script.faults))
        for start in range(0, len(script.faults), size):
            fewer = replace(script, faults=script.faults[:start] + script.faults[start + size :])
            if wrong(fewer):
                script = fewer
                break
        else:
            size //= 2
    return script
