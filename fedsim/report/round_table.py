"""The rounds as a table: for a terminal, for a plain text file, and for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedsim.report.cells import Cells, Notes, plain, rich
from fedsim.report.formats import MISSING, duration, fixed, percent, share, significant, whole
from fedsim.report.leaving import closing, grouped, named, said
from fedsim.report.rounds import Dropout, Round, Secure, round_of

if TYPE_CHECKING:
    from rich.table import Table

MOST_NOTES = 12
"""With more of them below the table, reasons are told without who left for each."""
UNOPENED = "sent what goes into the sum, but did not help to open it"


def round_cells(rounds: Iterable[Round | Mapping[str, Any]], entries: int | None = None) -> Cells:
    """The rounds, one a row. Takes lines of `rounds.jsonl`, read or raw; what is no such line is left out.

    entries: how many values a client sends to a secure aggregation, if known: then the share that was cut off is told.
    """
    read = [entry if isinstance(entry, Round) else round_of(entry) for entry in rounds]
    records = [entry for entry in read if entry is not None]
    private = any(entry.epsilon is not None or entry.delta is not None for entry in records)
    deltas = {significant(entry.delta) for entry in records if entry.delta is not None}
    secure = [entry.secure for entry in records if entry.secure is not None]
    unopened, clipped = any(one.unopened for one in secure), any(one.clipped for one in secure)
    notes, tell = Notes(), _Leavers(records)
    rows = []
    for entry in records:
        # One after the other, so that the notes are numbered as they stand in the row.
        present = str(len(entry.clients)) if entry.clients else MISSING
        if entry.secure is None:
            present = notes.mark(present, closing(entry))
        dropped = tell.mark(str(len(entry.dropouts)), entry.dropouts, notes)
        summed = [_survivors(entry, notes)] if secure else []
        if unopened:
            those = entry.secure.unopened if entry.secure else ()
            summed.append(tell.mark(str(len(those)), those, notes, UNOPENED))
        if clipped:
            summed.append(_clipped(entry.secure, entries))
        rows.append(
            (
                str(entry.round),
                present,
                dropped,
                *summed,
                fixed(entry.train_loss, 3),
                fixed(entry.test_loss, 3),
                percent(entry.test_accuracy),
                *([_epsilon(entry)] if private else []),
                duration(entry.seconds),
            )
        )
    epsilon = f"epsilon at delta {deltas.pop()}" if len(deltas) == 1 else "epsilon"
    header = (
        *("round", "clients", "dropped"),
        *(["in the sum"] if secure else []),
        *(["did not open"] if unopened else []),
        *(["values cut off"] if clipped else []),
        *("train loss", "test loss", "test accuracy"),
        *([epsilon] if private else []),
        "time",
    )
    return Cells("Rounds", header, (True,) * len(header), tuple(rows), notes.written())


class _Leavers:
    """Notes about clients that left. Where there would be too many, a note is about a reason, and in all rounds."""

    def __init__(self, rounds: Sequence[Round]) -> None:
        everybody = [(entry.dropouts, entry.secure.unopened if entry.secure else ()) for entry in rounds]
        told = {(named(group), why) for both in everybody for kind in both for group, why in grouped(kind)}
        self._times = Counter(said(one.reason) for both in everybody for kind in both for one in kind)
        self._short = len(told) > MOST_NOTES

    def mark(self, cell: str, those: Sequence[Dropout], notes: Notes, what: str = "") -> str:
        """The cell with a note for each reason. what: what they did besides, and before."""
        for group, why in grouped(those):
            if self._short:
                times = self._times[why]
                notes_of = f"{why} ({'once' if times == 1 else f'{whole(times)} times'} in all)"
            else:
                notes_of = f"{named(group)} {what}: {why}" if what else f"{named(group)}: {why}"
            cell = notes.mark(cell, notes_of)
        return cell


def _survivors(entry: Round, notes: Notes) -> str:
    """How many clients are in the sum; that there is none, and why."""
    if entry.secure is None:
        return MISSING
    if entry.closed:
        return notes.mark("closed", closing(entry) or "no reason recorded")
    return notes.mark(whole(entry.secure.survivors), closing(entry))


def _clipped(secure: Secure | None, entries: int | None) -> str:
    """How many values were cut off before the sum, and their share of all that went into it."""
    if secure is None:
        return MISSING
    part = secure.clipped_share(entries)
    return f"{whole(secure.clipped)} ({share(part)})" if secure.clipped and part is not None else whole(secure.clipped)


def _epsilon(entry: Round) -> str:
    return "no bound" if entry.epsilon is None and entry.delta is not None else significant(entry.epsilon)


def rounds_table(rounds: Iterable[Round | Mapping[str, Any]], entries: int | None = None) -> Table:
    """The rounds for a terminal."""
    return rich(round_cells(rounds, entries))


def rounds_text(rounds: Iterable[Round | Mapping[str, Any]]) -> str:
    """The rounds as plain lines."""
    return plain(round_cells(rounds))
