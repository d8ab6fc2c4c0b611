"""The lines of `derived.jsonl`: single updates that adversaries made out of what they saw, and how right these are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.report.cells import Cells, plain, rich
from fedsim.report.formats import MISSING, fixed, numbered, ranges, significant
from fedsim.report.values import Table as Data
from fedsim.report.values import integer, integers, real, table, text

if TYPE_CHECKING:
    from rich.table import Table

MEANING = (
    "Errors are against the true update, which the simulation alone knows. The bound is what rounding leaves of a "
    "client's update. A cosine of 1 with the largest error below the bound, or near it, means that the client's update "
    "was recovered; a cosine near 0 that it was not."
)
NOTHING = "nothing derived"
MOST_NOTES = 12
"""Of what derivations noted: how many are told on a terminal."""


@dataclass(frozen=True)
class Derived:
    """One update of one client in one round, as an adversary derived it; or, of a target, that it derived nothing.

    error_bound: by how much rounding puts the update off. largest_error: of any coordinate. relative_error: the norm of
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
    nothing: bool = False


@dataclass(frozen=True)
class Note:
    """What an adversary's derivation said of what it could do and could not. about: the derivation."""

    adversary: str
    about: str
    text: str

    @property
    def whose(self) -> str:
        """Who says it: `'cabal' (collusion)`."""
        return f"'{self.adversary}' ({self.about})" if self.about else f"'{self.adversary}'"


def note_of(entry: Data) -> Note | None:
    """An entry of the manifest's `notes`; None where it says nothing."""
    said = text(entry.get("text"))
    return Note(text(entry.get("adversary")) or "unnamed", text(entry.get("about")), said) if said else None


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
        nothing=line.get("nothing") is True,
    )


def derived_cells(lines: Iterable[Derived | Mapping[str, Any]]) -> Cells:
    """The derived updates, one a row. Takes lines of `derived.jsonl`, read or raw.

    Targets of which one adversary derived nothing share a row, behind those of which somebody derived something.
    """
    read = [line if isinstance(line, Derived) else derived_of(line) for line in lines]
    rows: list[tuple[str, ...]] = []
    for one in read:
        if one.nothing:
            continue
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
    missed: dict[tuple[str, str], list[int | None]] = {}
    for one in read:
        if one.nothing:
            missed.setdefault((one.adversary, one.derivation or "not recorded"), []).append(one.client)
    for (adversary, derivation), clients in missed.items():
        whom = ranges(client for client in clients if client is not None) or MISSING
        rows.append((adversary, f"{derivation}: {NOTHING}", whom, *[MISSING] * 5))
    header = ("adversary", "how", "client", "round", "largest error", "bound", "relative error", "cosine")
    numeric = tuple(name not in ("adversary", "how") for name in header)
    return Cells("Updates that adversaries derived", header, numeric, tuple(rows))


def meaning(lines: Iterable[Derived]) -> str:
    """How to read the errors; empty where nothing was derived."""
    return MEANING if any(not one.nothing for one in lines) else ""


def told(notes: Sequence[Note]) -> list[str]:
    """What derivations noted, a line each; of very many, the first, and how many more there are."""
    more = len(notes) - MOST_NOTES
    lines = [f"{note.whose}: {note.text}" for note in notes[:MOST_NOTES]]
    return [*lines, f"and {more} more in manifest.json"] if more > 0 else lines


def _small(value: float | None) -> str:
    """Two digits, so that a column of small numbers is as long in each row."""
    return f"{value:.1e}" if value is not None and 0 < abs(value) < 1e-3 else significant(value)


def derived_table(lines: Iterable[Derived | Mapping[str, Any]]) -> Table:
    """The derived updates for a terminal."""
    return rich(derived_cells(lines))


def derived_text(lines: Iterable[Derived | Mapping[str, Any]]) -> str:
    """The derived updates as plain lines, for a pipe or a log."""
    return plain(derived_cells(lines))
