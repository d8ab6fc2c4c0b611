"""Why clients left a round, for a person: equal reasons are told once, and without the names of exceptions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from fedsim.report.formats import counted, listed, numbered
from fedsim.report.rounds import Dropout, Round

_RAISED = re.compile(r"(?:(?P<stage>\w+): )?(?P<error>DroppedOut|Refused): (?P<why>.+)", re.DOTALL)
_ITSELF = re.compile(r"client \d+(?: refuses in round \d+)?: ")
"""A refusal begins with who refuses, and when, which whoever tells of it has said already."""


def said(reason: str) -> str:
    """A dropout's reason in words.

    `shares: DroppedOut: left the round at 'shares'` becomes `left the round at 'shares'`, and `unmask: Refused: client
    0 refuses in round 1: it is asked ...` becomes `refused at 'unmask': it is asked ...`. Other reasons stay as they
    are.
    """
    found = _RAISED.fullmatch(reason)
    if found is None:
        return reason
    if found["error"] == "DroppedOut":
        return found["why"]
    at = f" at '{found['stage']}'" if found["stage"] else ""
    return f"refused{at}: {_ITSELF.sub('', found['why'], count=1)}"


def grouped(dropouts: Iterable[Dropout]) -> list[tuple[Sequence[Dropout], str]]:
    """Those that left for the same reason, and the reason; in the order of the first of each."""
    groups: dict[str, list[Dropout]] = {}
    for dropout in dropouts:
        groups.setdefault(said(dropout.reason), []).append(dropout)
    return [(group, why) for why, group in groups.items()]


def named(group: Sequence[Dropout]) -> str:
    """`clients 1, 6 and 9`; of one whose number is not recorded, `a client`."""
    known = [dropout.client for dropout in group if dropout.client is not None]
    rest = len(group) - len(known)
    parts = [numbered(known, "client")] if known else []
    if rest:
        parts.append("a client" if rest == 1 else counted(rest, "client"))
    return listed(parts)


def closing(entry: Round) -> str:
    """Why a round left the model as it was; empty if it did not. Without the mode and the round, both known."""
    mode = f"{entry.secure.mode}: " if entry.secure else ""
    why = entry.skipped.removeprefix(mode).removeprefix(f"round {entry.round}: ")
    if entry.secure is None or not entry.secure.cut_off:
        return why
    waited = f"{numbered(list(entry.secure.cut_off), 'client')} had replied when it closed"
    return f"{why}; {waited}" if why else waited
