"""The scores and the rounds as tables: for a terminal, for a plain text file, and for the page.

What is missing stands as `-`, and a note below says why where the run knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.report import words
from fedsim.report.formats import MISSING, duration, fixed, percent, significant, whole
from fedsim.report.reading import Attack, Round, attack_of, round_of

if TYPE_CHECKING:
    from rich.table import Table


MOST_SUMMANDS = 8
LABELS_ALONE = "after the labels alone, no images"
"""Why an attack has no score of images although nothing failed."""


@dataclass(frozen=True)
class Cells:
    """A table as strings. `numeric` says which columns are set flush right; `notes` stand below."""

    title: str
    header: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


class _Notes:
    """Footnotes, each reason once."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def mark(self, cell: str, reason: str) -> str:
        if not reason:
            return cell
        if reason not in self.reasons:
            self.reasons.append(reason)
        return f"{cell} [{self.reasons.index(reason) + 1}]"

    def written(self) -> tuple[str, ...]:
        return tuple(f"[{number}] {reason}" for number, reason in enumerate(self.reasons, 1))


def attack_cells(attacks: Iterable[Attack | Mapping[str, Any]]) -> Cells:
    """The scores, a row a reconstruction. Takes lines of `attacks.jsonl`, read or raw."""
    records = [attack if isinstance(attack, Attack) else attack_of(attack) for attack in attacks]
    nets = {attack.lpips_net for attack in records if attack.lpips is not None}
    one_net = len(nets) == 1 and next(iter(nets))
    notes = _Notes()
    rows = []
    for attack in records:
        lpips = fixed(attack.lpips)
        if lpips != MISSING and attack.lpips_net and not one_net:
            lpips += f" ({attack.lpips_net})"
        defended = words.defenses(attack.defenses) + (", known to the attacker" if attack.informed else "")
        trouble = words.failure(attack) if attack.failed else words.ending(attack)
        psnr, ssim = fixed(attack.psnr, 1), fixed(attack.ssim)
        rows.append(
            (
                notes.mark(attack.adversary, trouble),
                _whom(attack),
                attack.when or MISSING,
                defended,
                _of_batch(attack),
                _reasoned(psnr, attack, notes),
                _reasoned(ssim, attack, notes),
                notes.mark(lpips, _why_no_lpips(attack)) if lpips == MISSING else lpips,
                percent(attack.label_accuracy, 0),
                whole(attack.iterations),
                duration(attack.seconds),
            )
        )
    header = (
        "adversary",
        "client",
        "round",
        "defenses",
        "batch",
        "PSNR dB",
        "SSIM",
        f"LPIPS ({one_net})" if one_net else "LPIPS",
        "label acc.",
        "iterations",
        "time",
    )
    numeric = tuple(name not in ("adversary", "defenses") for name in header)
    return Cells("Reconstructions", header, numeric, tuple(rows), notes.written())


def _of_batch(attack: Attack) -> str:
    """`16`; `2 of 16` where fewer images were found, over which the means then are."""
    fewer = attack.images is not None and attack.batch is not None and 0 < attack.images < attack.batch
    return f"{attack.images} of {attack.batch}" if fewer else whole(attack.batch)


def _whom(attack: Attack) -> str:
    """`3`; `0+1+2` of a sum; of many clients only how many."""
    if len(attack.clients) > MOST_SUMMANDS:
        return f"sum of {len(attack.clients)}"
    return "+".join(map(str, attack.clients)) or (MISSING if attack.client is None else str(attack.client))


def round_cells(rounds: Iterable[Round | Mapping[str, Any]]) -> Cells:
    """The rounds, one a row. Takes lines of `rounds.jsonl`, read or raw; what is no such line is left out."""
    read = [entry if isinstance(entry, Round) else round_of(entry) for entry in rounds]
    records = [entry for entry in read if entry is not None]
    private = any(entry.epsilon is not None or entry.delta is not None for entry in records)
    deltas = {significant(entry.delta) for entry in records if entry.delta is not None}
    notes = _Notes()
    rows = []
    for entry in records:
        dropped = str(len(entry.dropouts)) if entry.dropouts else ""
        for dropout in entry.dropouts:
            who = "a client" if dropout.client is None else f"client {dropout.client}"
            dropped = notes.mark(dropped, f"{who}: {dropout.reason}")
        row = (
            str(entry.round),
            str(len(entry.clients)) if entry.clients else MISSING,
            dropped or "0",
            fixed(entry.train_loss, 3),
            fixed(entry.test_loss, 3),
            percent(entry.test_accuracy),
            *([_epsilon(entry)] if private else []),
            duration(entry.seconds),
        )
        rows.append(row)
    epsilon = f"epsilon at delta {deltas.pop()}" if len(deltas) == 1 else "epsilon"
    tail = (epsilon, "time") if private else ("time",)
    header = ("round", "clients", "dropped", "train loss", "test loss", "test accuracy", *tail)
    return Cells("Rounds", header, (True,) * len(header), tuple(rows), notes.written())


def _epsilon(entry: Round) -> str:
    return "no bound" if entry.epsilon is None and entry.delta is not None else significant(entry.epsilon)


def attacks_table(attacks: Iterable[Attack | Mapping[str, Any]]) -> Table:
    """The scores for a terminal."""
    return _rich(attack_cells(attacks))


def rounds_table(rounds: Iterable[Round | Mapping[str, Any]]) -> Table:
    """The rounds for a terminal."""
    return _rich(round_cells(rounds))


def attacks_text(attacks: Iterable[Attack | Mapping[str, Any]]) -> str:
    """The scores as plain lines of any length, for a pipe or a log."""
    return plain(attack_cells(attacks))


def rounds_text(rounds: Iterable[Round | Mapping[str, Any]]) -> str:
    """The rounds as plain lines."""
    return plain(round_cells(rounds))


def plain(cells: Cells) -> str:
    """Columns in line, two spaces apart, notes below; control characters of a foreign string are shown, not obeyed."""
    if not cells.rows:
        return f"{cells.title}: none"
    lines = [cells.header, *([_printable(cell) for cell in row] for row in cells.rows)]
    widths = [max(len(row[column]) for row in lines) for column in range(len(cells.header))]
    written = [_aligned(row, widths, cells.numeric) for row in lines]
    return "\n".join([*written, *(_printable(note) for note in cells.notes)])


def _aligned(row: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    columns = zip(row, widths, numeric, strict=True)
    return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in columns).rstrip()


def _rich(cells: Cells) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text, and never str: a string with square brackets would be taken for markup.
    notes = Text("\n".join(_printable(note) for note in cells.notes)) if cells.notes else None
    table = Table(title=cells.title, box=box.SIMPLE_HEAD, caption=notes, caption_justify="left", title_justify="left")
    for name, right in zip(cells.header, cells.numeric, strict=True):
        table.add_column(Text(name), justify="right" if right else "left", overflow="fold")
    for row in cells.rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    return table


def _reasoned(cell: str, attack: Attack, notes: _Notes) -> str:
    """A score that is missing although nothing is said to have failed gets its reason here."""
    if cell == MISSING and attack.labels_alone:
        return notes.mark(cell, LABELS_ALONE)
    if cell != MISSING or attack.failed:
        return cell
    given = attack.psnr is not None or attack.ssim is not None
    return notes.mark(cell, "not a number" if given else "no scores recorded")


def _why_no_lpips(attack: Attack) -> str:
    if attack.labels_alone:
        return LABELS_ALONE
    return f"LPIPS {attack.lpips_note}" if attack.lpips_note else ""


def _printable(cell: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in cell)
