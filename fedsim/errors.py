"""The errors that a person is meant to read: each says where, what and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

QUARANTINED = 3
"""The exit code of what was done, but for attacks whose plugin failed."""


LONGEST = 1000
"""Signs of a line that tells a problem."""


class FedsimError(Exception):
    """Base of every error that fedsim raises on purpose. The command line prints it without a traceback."""

    exit_code = 1


class InputError(FedsimError):
    """The user's input is wrong. Exit code 2.

    `problems` holds one line for each thing that is wrong, of the form `place: key: problem; remedy`, so that
    a file with three mistakes is mended in one go. Whatever a file holds, a line can be read: see `legible`.
    """

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(map(legible, problems))
        super().__init__("\n".join(self.problems))


class SettingError(InputError):
    """One setting of a component does not do, for a reason that its annotation cannot tell (a file that is not there).

    A component's `check` raises it, and the reader of experiment files adds the line on which `key` stands.
    """

    def __init__(self, owner: str, key: str, problem: str) -> None:
        super().__init__(f"{owner}: {key}: {problem}")
        self.key, self.problem = key, problem


class DataUnavailable(FedsimError):
    """A data set is neither on disk nor to be had from where it is published."""


class ProtocolError(FedsimError):
    """A message broke the protocol (NaN, wrong shape, missing key). Names the client and the key."""


def legible(line: str) -> str:
    """One line for a screen, whatever was put in it: signs that move the cursor or hide are written out (`\\n`), and of
    a line that is far too long the middle is left out: the place stands in front, the remedy at the end.
    """
    line = _shortened(line)
    if line.isprintable():
        return line
    return _shortened("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


def _shortened(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 3 :]}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` when a known word is close, otherwise `; known: a, b, c`."""
    known = sorted(known)
    folded = {one.lower(): one for one in reversed(known)}
    close = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{folded[close[0]]}'?"
    return f"; known: {', '.join(known)}" if known else ""
