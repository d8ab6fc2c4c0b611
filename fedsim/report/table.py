"""The scores as a table: for a terminal, for a plain text file, and for the page.

What is missing stands as `-`, and a note below says why where the run knows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fedsim.report import words
from fedsim.report.cells import Cells, Notes, plain, rich
from fedsim.report.formats import MISSING, duration, fixed, percent, whole
from fedsim.report.reading import Attack, attack_of

if TYPE_CHECKING:
    from rich.table import Table


MOST_SUMMANDS = 8
LABELS_ALONE = "after the labels alone, no images"
"""Why an attack has no score of images although nothing failed."""


GIVEN = "given"
"""The accuracy of labels that an adversary was granted."""


def attack_cells(attacks: Iterable[Attack | Mapping[str, Any]], given: Collection[str] = ()) -> Cells:
    """The scores, a row a reconstruction. Takes lines of `attacks.jsonl`, read or raw.

    given: the adversaries that were granted the labels, by `Attack.entry`; see `words.given_labels`.
    """
    records = [attack if isinstance(attack, Attack) else attack_of(attack) for attack in attacks]
    nets = {attack.lpips_net for attack in records if attack.lpips is not None}
    one_net = len(nets) == 1 and next(iter(nets))
    notes = Notes()
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
                GIVEN if attack.entry in given else percent(attack.label_accuracy, 0),
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


def attacks_table(attacks: Iterable[Attack | Mapping[str, Any]], given: Collection[str] = ()) -> Table:
    """The scores for a terminal."""
    return rich(attack_cells(attacks, given))


def attacks_text(attacks: Iterable[Attack | Mapping[str, Any]]) -> str:
    """The scores as plain lines of any length, for a pipe or a log."""
    return plain(attack_cells(attacks))


def _reasoned(cell: str, attack: Attack, notes: Notes) -> str:
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
