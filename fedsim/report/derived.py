"""The lines of `derived.jsonl`: single updates that adversaries made out of what they saw, and how right these are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.report.cells import Cells, plain, rich
from fedsim.report.formats import MISSING, fixed, numbered, significant
from fedsim.report.values import Table as Data
from fedsim.report.values import integer, integers, real, table, text

if TYPE_CHECKING:
    from rich.table import Table

MEANING = (
    "Errors are against the true update, which the simulation alone knows. A cosine of 1 with an error near the bound "
    "(what rounding leaves in a sum; several sums and single precision add to it) means that the client's update was "
    "recovered; a cosine near 0 that it was not."
)


@dataclass(frozen=True)
class Derived:
    """One update of one client in one round, as an adversary derived it.

    error_bound: by how much rounding puts a sum off. largest_error: of any coordinate. relative_error: the norm of
    what is wrong over the norm of the true update. cosine: of the two. rounds: those that it was derived from.
    """

    adversary: str = "unnamed"
    derivation: str = ""
    client: int | None = None
    round: int | None = None
    rounds: tuple[int, ...] = ()
    error_bound: float | None = None
    largest_error: float | None = None
    relative_error: float | None = None
    cosine: float | None = None


def derived_of(line: Data) -> Derived:
    """A line of `derived.jsonl`."""
    return Derived(
        adversary=text(line.get("adversary")) or "unnamed",
        derivation=text(line.get("derivation")),
        client=integer(line.get("client")),
        round=integer(line.get("round")),
        rounds=integers(table(line.get("facts")).get("rounds")),
        error_bound=real(line.get("error_bound")),
        largest_error=real(line.get("largest_error")),
        relative_error=real(line.get("relative_error")),
        cosine=real(line.get("cosine")),
    )


def derived_cells(lines: Iterable[Derived | Mapping[str, Any]]) -> Cells:
    """The derived updates, one a row. Takes lines of `derived.jsonl`, read or raw."""
    rows = []
    for line in lines:
        one = line if isinstance(line, Derived) else derived_of(line)
        several = f", from {numbered(list(one.rounds), 'round')}" if len(set(one.rounds)) > 1 else ""
        rows.append(
            (
                one.adversary,
                (one.derivation or "not recorded") + several,
                MISSING if one.client is None else str(one.client),
                MISSING if one.round is None else str(one.round),
                _small(one.largest_error),
                _small(one.error_bound),
                _small(one.relative_error),
                fixed(one.cosine, 4),
            )
        )
    header = ("adversary", "how", "client", "round", "largest error", "bound", "relative error", "cosine")
    numeric = tuple(name not in ("adversary", "how") for name in header)
    return Cells("Updates that adversaries derived", header, numeric, tuple(rows))


def _small(value: float | None) -> str:
    """Two digits, so that a column of small numbers is as long in each row."""
    return f"{value:.1e}" if value is not None and 0 < abs(value) < 1e-3 else significant(value)


def derived_table(lines: Iterable[Derived | Mapping[str, Any]]) -> Table:
    """The derived updates for a terminal."""
    return rich(derived_cells(lines))


def derived_text(lines: Iterable[Derived | Mapping[str, Any]]) -> str:
    """The derived updates as plain lines, for a pipe or a log."""
    return plain(derived_cells(lines))
