"""How many neighbours a client masks with, and how many holders open a secret: derived from what is feared.

Of n clients, c = floor(corrupt * n) work with the server and d = floor(dropout * n) drop out. Each shares its two
secrets (of its self mask, and of its pairwise masks) with its k neighbours and itself; t of these k + 1 holders open
one. A holder gives out one of the two, as the server says that the client survived or dropped out. What must hold, with
chances over the random graph as in Bell et al. (CCS 2020, section 3), summed over the n clients:

    privacy       no honest survivor without an honest surviving neighbour, n (corrupt + dropout)^k below 2^-40, nor
                  the graph of them in two parts, with two gaps of k / 2 on the ring; t corrupt neighbours of one
                  client below 2^-40; and against a malicious server, which tells some holders one thing and others
                  another, 2 t > k + 1 + corrupt neighbours but for 2^-40
    correctness   fewer than t surviving neighbours of one client below 2^-30

Up to 50 clients, and where no smaller graph does, all are neighbours of all, and nothing is left to chance.

Not covered: a server that chooses the graph itself, or, knowing it, whom it calls dropped. On a graph that is not full
it can call all neighbours of one client dropped, unless the clients confirm to one another who survived. And nobody
vouches for public keys: a server that puts its own keys in the place of all of a client's neighbours, or invents them,
reads that client's shares. `malicious` is about lies over dropouts, thresholds and models; for more, keys would have to
be signed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

from fedsim.secagg.chances import log2_at_least, log2_binomial, rare

SECURITY, CORRECTNESS = -40, -30
"""log2 of the chance, over all clients of a round, that something private leaks, and that a round cannot be opened."""

FULL = 50
"""Up to so many clients, everybody is a neighbour of everybody."""

Problems = tuple[tuple[str, str], ...]
"""(key, what is wrong with it and what to do)."""


class Choice(Protocol):
    """The settings that this depends on: those of `secagg+`."""

    @property
    def corrupt(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def neighbours(self) -> int | None: ...
    @property
    def threshold(self) -> int | None: ...
    @property
    def server(self) -> str: ...
    @property
    def min_survivors(self) -> int: ...


@dataclass(frozen=True)
class Parameters:
    """Of one round. neighbours: of each client. threshold: shares that open a secret, of neighbours + 1 holders.

    min_survivors: with fewer clients left the round is closed. Never below the threshold, nor below two more than the
    corrupt clients: with one more, these would know the update of the only honest one.
    """

    neighbours: int
    threshold: int
    min_survivors: int


def derive(settings: Choice, clients: int) -> Parameters:
    """The parameters of rounds with so many clients. Raises ValueError, `key: problem`, without safe ones."""
    found, problems = _solved(settings, clients)
    if found is None:
        raise ValueError("; ".join(f"{key}: {problem}" for key, problem in problems))
    return found


def problems_with(settings: Choice, clients: int) -> list[tuple[str, str]]:
    """(key, what is wrong with it and what to do) for rounds of so many clients; empty where `derive` succeeds."""
    return list(_solved(settings, clients)[1])


def _solved(settings: Choice, clients: int) -> tuple[Parameters | None, Problems]:
    declared = Declared(clients, settings.corrupt, settings.dropout, settings.server == "malicious")
    return _solve(declared, settings.neighbours, settings.threshold, settings.min_survivors)


@dataclass(frozen=True)
class Declared:
    """A round as it is feared: clients, fractions of them, and whether the server departs from the protocol."""

    clients: int
    corrupt: float
    dropout: float
    malicious: bool

    # As the decimals that a person wrote: 0.29 of 100 are 29, though the nearest float is a little less.
    @property
    def bad(self) -> int:
        """Corrupt clients."""
        return math.floor(Fraction(str(self.corrupt)) * self.clients)

    @property
    def gone(self) -> int:
        """Clients that drop out."""
        return math.floor(Fraction(str(self.dropout)) * self.clients)

    @property
    def left(self) -> int:
        """Clients that survive."""
        return self.clients - self.gone

    @property
    def possible(self) -> bool:
        """Whether the full graph does. Where it does not, no smaller one does."""
        return max(self.least(self.clients - 1), self.bad + 2) <= self.left

    def full(self, neighbours: int) -> bool:
        """Whether everybody is a neighbour of everybody."""
        return neighbours >= self.clients - 1

    def apart(self, neighbours: int) -> float:
        """log2 of the chance that the graph of the honest survivors is not connected."""
        if self.full(neighbours):
            return -math.inf
        share = Fraction(str(self.corrupt)) + Fraction(str(self.dropout))
        alone = neighbours * math.log2(share) if share else -math.inf
        # Two gaps of k / 2 each, anywhere on the ring, part it (k / 2 rounded down where k is odd).
        missing, gaps = min(self.bad + self.gone, self.clients), neighbours // 2 * 2
        both = log2_binomial(self.clients - gaps, missing - gaps) - log2_binomial(self.clients, missing)
        return max(math.log2(self.clients) + alone, log2_binomial(self.clients, 2) + both)

    def leak(self, neighbours: int, threshold: int) -> float:
        """log2 of the chance that some client's secrets are opened against it, on a graph that is not full."""
        enough = 2 * threshold - neighbours - 1 if self.malicious else threshold
        return math.log2(self.clients) + log2_at_least(self.clients - 1, self.bad, neighbours, enough)

    def loss(self, neighbours: int, threshold: int) -> float:
        """log2 of the chance that some client's secret cannot be opened, on a graph that is not full."""
        gone = neighbours - threshold + 1
        return math.log2(self.clients) + log2_at_least(self.clients - 1, self.gone, neighbours, gone)

    def least(self, neighbours: int) -> int:
        """The smallest threshold that is private."""
        if self.full(neighbours):
            return max(2, (self.clients + self.bad) // 2 + 1 if self.malicious else self.bad + 1)
        bad = rare(self.clients - 1, self.bad, neighbours, SECURITY - math.log2(self.clients))
        return max(2, (neighbours + 1 + bad + 1) // 2 if self.malicious else bad)

    def most(self, neighbours: int) -> int:
        """The largest threshold that is reached."""
        if self.full(neighbours):
            return self.left
        return neighbours + 1 - rare(self.clients - 1, self.gone, neighbours, CORRECTNESS - math.log2(self.clients))

    def preferred(self, neighbours: int) -> int:
        """The smallest private threshold; with the full graph also above half of the clients, where so many survive."""
        least = self.least(neighbours)
        return max(least, min(self.clients // 2 + 1, self.left)) if self.full(neighbours) else least

    def smallest(self, threshold: int | None = None) -> int | None:
        """The smallest even number of neighbours for which a threshold, or the given one, does; None without any."""
        if not self.possible:
            return None
        everybody = self.clients - 1
        if self.clients > FULL:
            low, high = 1, everybody // 2 + 1
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if self.apart(2 * middle) < SECURITY else (middle + 1, high)
            neighbours = 2 * low
            while neighbours < everybody:
                least, most = self.least(neighbours), self.most(neighbours)
                excess = least - most if threshold is None else max(least - threshold, threshold - most)
                if excess <= 0:
                    return neighbours
                if threshold is not None and least > threshold:
                    break
                # Two more neighbours are at most two more survivors, so nothing smaller than this can do.
                neighbours += excess + excess % 2
        if threshold is None or self.least(everybody) <= threshold <= self.most(everybody):
            return everybody
        return None


@lru_cache(maxsize=256)
def _solve(
    declared: Declared, neighbours: int | None, threshold: int | None, min_survivors: int
) -> tuple[Parameters | None, Problems]:
    clients = declared.clients
    if clients < 2:
        return None, (("min_survivors", f"{clients} client cannot hide in a sum; let at least 2 take part"),)
    if threshold is not None and threshold < 2:
        return None, (("threshold", "one share must not open a secret; 2 at least" + _instead(declared)),)
    if not declared.possible:
        return None, (_impossible(declared),)
    degree = declared.smallest(threshold) if neighbours is None else min(neighbours, clients - 1)
    if degree is None:
        # No number of neighbours goes with this threshold: say why with the derived one.
        degree = declared.smallest() or clients - 1
    chosen = declared.preferred(degree) if threshold is None else threshold
    problems = tuple(_unsafe(declared, degree, chosen, threshold is None))
    if problems:
        return None, problems
    return Parameters(degree, chosen, max(min_survivors, chosen, declared.bad + 2)), ()


def _unsafe(declared: Declared, neighbours: int, threshold: int, free: bool) -> list[tuple[str, str]]:
    """What speaks against a pair. free: the threshold is not given, but the smallest private one."""
    clients, instead = declared.clients, _instead(declared)
    if not declared.full(neighbours) and neighbours % 2 and clients % 2:
        return [("neighbours", f"{clients} clients cannot have {neighbours} each, both are odd; take an even number")]
    if (chance := declared.apart(neighbours)) >= SECURITY:
        return [
            (
                "neighbours",
                f"with {neighbours} of {clients} clients, the honest ones that are left may fall apart into groups "
                f"whose sums the server learns, with a chance up to {_power(chance)}, and below 2^{SECURITY} is "
                f"needed{instead}",
            )
        ]
    least, most, holders = declared.least(neighbours), declared.most(neighbours), neighbours + 1
    if free and least > most:
        return [
            (
                "neighbours",
                f"with {neighbours} of {clients} clients no threshold does: for {declared.bad} corrupt ones it must be "
                f"at least {least} (chance below 2^{SECURITY}), for {declared.gone} dropouts at most {most} (below "
                f"2^{CORRECTNESS}){instead}",
            )
        ]
    if threshold < least:
        return [("threshold", f"{threshold} of {holders} holders: {_leaks(declared, neighbours, threshold)}{instead}")]
    if threshold > most:
        why = f"only {declared.left} of {clients} clients are left after {declared.gone} dropouts"
        if not declared.full(neighbours):
            chance = declared.loss(neighbours, threshold)
            why = (
                f"with {declared.gone} dropouts of {clients} clients, fewer holders are left with a chance up to "
                f"{_power(chance)}, and below 2^{CORRECTNESS} is needed"
            )
        return [("threshold", f"{threshold} of {holders} holders: {why}{instead}")]
    return []


def _leaks(declared: Declared, neighbours: int, threshold: int) -> str:
    """Why a threshold is too low."""
    clients, bad = declared.clients, declared.bad
    if declared.full(neighbours):
        if declared.malicious:
            return (
                f"with {bad} corrupt of {clients} clients, a malicious server could open both secrets of one, each "
                f"with other honest holders; 2 * threshold must be above {clients} + {bad}"
            )
        return f"so many clients are corrupt ({bad} of {clients}) and could open secrets alone; {bad + 1} at least"
    event = (
        "a malicious server can open both secrets of some client"
        if declared.malicious
        else "so many neighbours of some client are corrupt"
    )
    return (
        f"with {bad} corrupt of {clients} clients, {event} with a chance up to "
        f"{_power(declared.leak(neighbours, threshold))}, and below 2^{SECURITY} is needed"
    )


def _impossible(declared: Declared) -> tuple[str, str]:
    """The key, and the problem, where not even the full graph does."""
    clients, bad, gone = declared.clients, declared.bad, declared.gone
    needed = max(declared.least(clients - 1), bad + 2)
    dropouts, corrupts = clients - needed, clients - gone - 2
    if declared.malicious:
        corrupts = min(corrupts, clients - 2 * gone - 1)
    remedies = [
        f"lower {key} to at most {math.floor(1000 * most / clients) / 1000:g}"
        for key, most in (("dropout", dropouts), ("corrupt", corrupts))
        if most >= 0
    ]
    return (
        "dropout" if dropouts >= 0 else "corrupt",
        f"with {bad} corrupt of {clients} clients and a {'malicious' if declared.malicious else 'curious'} server, "
        f"{needed} must be left at the end of a round, but after {gone} dropouts only {declared.left} are; "
        f"{' or '.join(remedies) or 'lower both corrupt and dropout'}"
        + (
            ", or trust the server to be honest_but_curious" if declared.malicious and bad + gone + 2 <= clients else ""
        ),
    )


def _instead(declared: Declared) -> str:
    """The pair that is derived, as the remedy."""
    degree = declared.smallest()
    return "" if degree is None else f"; the derived pair is {degree} and {declared.preferred(degree)}"


def _power(log2: float) -> str:
    return "1" if log2 > -0.5 else f"2^{log2:.0f}"
