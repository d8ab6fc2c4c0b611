"""Whether an experiment was answered as promised: read and read back, or refused in words. No test is in here."""

from __future__ import annotations

import re
import resource
import signal
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from badinput.generating import Case

from fedsim.adversaries import threat
from fedsim.errors import LONGEST, InputError, legible
from fedsim.experiment import Experiment
from fedsim.experiment_file import as_toml, from_table, read
from fedsim.sweeps import file as sweeps
from fedsim.sweeps.cells import expand

SECONDS = 2.0
"""Of the processor's time, for one answer."""

MEMORY = 2 << 30
"""Bytes that an answer may take, at most."""

PLAIN = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*|\[\d+\])*", re.ASCII)
"""A path of bare keys and positions, as messages write it."""

OWN_ERRORS = re.compile(r"\b[A-Z]\w*(Error|Exception)\b(?!')|Traceback|<object|<class|0x[0-9a-f]{8}|dataclass")
"""Words of Python, which say nothing to the writer of a file."""


class Unclear(AssertionError):
    """Something that is no clear answer."""


class TooLong(BaseException):
    """The alarm rang. No handler for exceptions of whoever reads a file may catch it."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise TooLong after so many seconds of this process's work, whatever it works on."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def judge(case: Case, file: Path) -> str:
    """`valid` or `refused`. Raises Unclear for all else. file: where the text may be written."""
    source, lines = "experiment", 1
    if case.text is not None:
        file.write_bytes(case.text)
        source, lines = str(file), max(len(case.text.decode(errors="replace").splitlines()), 1)
    try:
        with told_of(SECONDS):
            found = _answer(case, source)
    except InputError as error:
        judge_words(error, source, lines, case)
        return "refused"
    try:
        with told_of(10 * SECONDS):  # a list of a million clients is written out
            again = from_table(tomllib.loads(as_toml(found)), rules=[threat.check])
    except InputError as error:
        raise Unclear(f"is valid, and refused once it is written out: {error}") from error
    if again != found:
        raise Unclear("is not the same when it is written and read again")
    return "valid"


def judge_sweep(case: Case, file: Path) -> str:
    """The same for a sweep, with all of its cells. It is not written and read again."""
    assert case.text is not None
    file.write_bytes(case.text)
    try:
        with told_of(SECONDS):
            sweep = sweeps.read(str(file))
            for scale in sweep.scales or (None,):
                expand(sweep, scale, (), [threat.check])
    except InputError as error:
        for problem in error.problems:
            _judge_legible(problem)
            # Of a file that it extends, that file's line is told. Keys are those of a cell's experiment.
            if not re.match(rf"({re.escape(str(file))}|[\w/-]+\.toml)(:\d+)?: \S", problem):
                raise Unclear(f"does not name the source and a reason: {problem!r}") from None
        return "refused"
    return "valid"


@contextmanager
def within(more: int) -> Iterator[None]:
    """Let this process have so many bytes more than it has, so that a list without end is a MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more if hard < 0 else min(now + more, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def told_of(seconds: float) -> Iterator[None]:
    """Raise Unclear for what takes longer, and for all errors but InputError."""
    try:
        with within(MEMORY), alarm(seconds):
            yield
    except TooLong:
        raise Unclear(f"no answer within {seconds} s of work") from None
    except (InputError, Unclear):
        raise
    except Exception as error:
        raise Unclear(f"ends with {type(error).__name__}: {str(error)[:300]}") from error


def _answer(case: Case, source: str) -> Experiment:
    if case.text is None:
        assert case.table is not None
        return from_table(case.table, source, rules=[threat.check])
    return read(source, case.settings, rules=[threat.check])


def judge_words(error: InputError, source: str, lines: int, case: Case) -> None:
    """Every line has the source, a place in it and a reason."""
    if not error.problems:
        raise Unclear("is refused without a word")
    for problem in error.problems:
        _judge_legible(problem)
        _judge_place(problem, source, lines, case)


def _judge_legible(problem: str) -> None:
    if len(problem) > LONGEST:
        raise Unclear(f"a line of {len(problem)} signs: {problem[:200]!r} ...")
    if not problem.isprintable():
        raise Unclear(f"a line that no screen shows as it is: {problem!r}")
    if words := OWN_ERRORS.search(problem):
        raise Unclear(f"speaks of {words.group()!r}: {problem!r}")


def _judge_place(problem: str, source: str, lines: int, case: Case) -> None:
    if problem.startswith("--set "):
        if any(problem.startswith(start) for start in _starts(case)):
            return
        raise Unclear(f"names a setting that was not given: {problem!r}")
    place, _, words = problem.removeprefix(source).partition(": ")
    if not problem.startswith(source) or not words.strip():
        raise Unclear(f"does not name the source and a reason: {problem!r}")
    if place and not (re.fullmatch(r":\d+", place) and 1 <= int(place[1:]) <= lines):
        raise Unclear(f"names line {place!r} of {lines}: {problem!r}")
    if place and case.text is not None:
        _judge_line(words.partition(": ")[0], int(place[1:]), case.text)
    if not words.partition(": ")[2] and not re.search(r"UTF-8|TOML|nested|more like|\[\w+\]", words):
        raise Unclear(f"names no key, or no reason: {problem!r}")


def _judge_line(key: str, line: int, text: bytes) -> None:
    """The key, or the nearest that there is of those which should hold it, stands on the line."""
    try:
        here = tomllib.loads(text.decode("utf-8-sig"))
    except ValueError:
        return
    if not PLAIN.fullmatch(key) or "a.b" in key:  # a quoted key may look like several
        return
    nearest, item = "", False
    for word in re.findall(r"[\w-]+", key):
        inner = _below(here, word)
        if inner is None:
            break
        item = isinstance(here, list)
        here, nearest = inner, nearest if item else word
    found = text.decode("utf-8-sig").replace("\r\n", "\n").split("\n")[line - 1]
    if (nearest not in found and not (item and _is_item(found, here))) or (not nearest and line != 1):
        raise Unclear(f"'{key}' is not on line {line}: {found!r}")


def _is_item(found: str, value: Any) -> bool:
    """Whether a line of a list holds the value, or its beginning."""
    try:
        held = tomllib.loads(f"x = {found.strip().rstrip(',')}")["x"]
    except ValueError:
        return found.strip()[:1] in ("[", "{") and isinstance(value, list | dict)
    return repr(held) == repr(value)


def _below(here: Any, word: str) -> Any:
    if isinstance(here, list):
        return here[int(word)] if word.isdecimal() and int(word) < len(here) else None
    return here.get(word) if isinstance(here, dict) else None


def _starts(case: Case) -> list[str]:
    """How a line about a setting may begin. Of one too long for a line the middle is not shown."""
    said = [f"--set {shown}: " for setting in case.settings for shown in (setting, repr(setting))]
    return [legible(start)[: LONGEST // 2] for start in said]
