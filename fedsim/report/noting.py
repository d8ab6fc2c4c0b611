"""What attacks note about themselves, in a few short lines: any JSON data, however long or deep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.report import words
from fedsim.report.formats import counted, plain, significant
from fedsim.report.reading import Attack

MOST_NOTES, MOST_VALUES, LONGEST_NOTE = 8, 8, 240
"""Of an attack's notes: how many, how many values of a list, and how many characters of one."""


@dataclass(frozen=True)
class Noted:
    """What an adversary noted about one or more of its attacks."""

    adversary: str
    attacks: str
    notes: Sequence[tuple[str, str]]


def noted(attacks: Sequence[Attack]) -> list[Noted]:
    """The attacks' notes; those of one adversary that noted the same stand together."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Attack]] = {}
    for attack in attacks:
        if attack.notes:
            groups.setdefault((attack.adversary, tuple(notes(attack))), []).append(attack)
    return [
        Noted(adversary, cut("; ".join(f"{words.victim(hit).lower()}, {words.when(hit)}" for hit in hits)), list(told))
        for (adversary, told), hits in groups.items()
    ]


def notes(attack: Attack) -> list[tuple[str, str]]:
    """What an attack noted about itself, each note short enough for a line."""
    told = [(cut(str(key).replace("_", " ")), brief(value)) for key, value in attack.notes.items()]
    more = len(told) - MOST_NOTES
    return told[:MOST_NOTES] + ([("and", f"{more} more in attacks.jsonl")] if more > 0 else [])


def brief(value: object) -> str:
    """Any JSON data in a line: a long list by its ends, what is nested by its number, a long text cut."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return significant(value, 4)
    if isinstance(value, list | tuple):
        if any(isinstance(entry, list | tuple | dict) for entry in value):
            return f"{counted(len(value), 'entry', 'entries')}, in attacks.jsonl"
        shown = [brief(entry) for entry in value]
        if len(shown) > MOST_VALUES:
            shown = [*shown[: MOST_VALUES - 2], "...", shown[-1]]
        return cut(", ".join(shown)) if shown else "none"
    if isinstance(value, dict):
        inside = [f"{key} {brief(entry)}" for key, entry in value.items() if not isinstance(entry, list | dict)]
        if len(inside) < len(value) or len(inside) > MOST_VALUES:
            return f"{counted(len(value), 'entry', 'entries')}, in attacks.jsonl"
        return cut(", ".join(inside)) if inside else "none"
    return cut(plain(value))


def cut(words: str) -> str:
    """The beginning of a long text."""
    return words if len(words) <= LONGEST_NOTE else words[: LONGEST_NOTE - 4].rstrip() + " ..."
