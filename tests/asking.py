"""Ask the command line inside the tests' own process, and look at its answer. No test is in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedsim import cli

HERE = "#!"
"""A comment in a file of a test: the answer must name this line."""

BASE: dict[str, dict[str, str]] = {
    "": {"seed": "0", "rounds": "3"},
    "data": {"name": '"digits"'},
    "model": {"name": '"mlp"'},
    "clients": {"count": "4", "batch_size": "4"},
    "server": {"learning_rate": "0.5"},
}
"""A valid experiment: its keys by section, with their values as TOML."""

ADVERSARY = {"name": '"geiping"', "vantage": '"link"', "targets": "[0]", "rounds": "[1]", "knows": '["labels"]'}
"""A valid [[adversaries]] entry."""


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def problems(self) -> list[str]:
        """The lines of the error stream."""
        return self.err.splitlines()


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> Answer:
    """Run one command line. An exception that escapes it fails the test: a user would see a traceback."""
    capsys.readouterr()
    try:
        code = cli.main(arguments)
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    said = capsys.readouterr()
    return Answer(code, said.out, said.err)


def document(changes: Mapping[tuple[str, str], str | None] | None = None, tail: str = "") -> str:
    """The valid experiment with some keys set, or left out (None), and `tail` behind it, as TOML text.

    Keys that are set are marked with HERE, and come first in their section.
    """
    sections = {name: dict(keys) for name, keys in BASE.items()}
    for (section, key), value in (changes or {}).items():
        sections.setdefault(section, {}).pop(key, None)
        if value is not None:
            sections[section] = {key: f"{value}  {HERE}", **sections[section]}
    lines: list[str] = []
    for section, keys in sections.items():
        lines += [f"[{section}]"] if section else []
        lines += [f"{key} = {value}" for key, value in keys.items()]
    return "\n".join([*lines, tail]) + "\n"


def entry(header: str, keys: Mapping[str, str | None], base: Mapping[str, str] | None = None) -> str:
    """One `[[header]]` with the keys of `base`, changed by `keys` (marked with HERE, as in `document`)."""
    table = {key: value for key, value in (base or {}).items() if key not in keys}
    new = {key: f"{value}  {HERE}" for key, value in keys.items() if value is not None}
    return "\n".join([f"[[{header}]]", *(f"{key} = {value}" for key, value in {**table, **new}.items())])


def adversary(**keys: str | None) -> str:
    """A valid adversary, changed by `keys`."""
    return entry("adversaries", keys, ADVERSARY)


def group(**keys: str | None) -> str:
    """A group of client 1, changed by `keys`."""
    return entry("clients.groups", keys, {"members": "[1]"})


def marked(text: str) -> int:
    """The number of the one line that holds HERE."""
    found = [number for number, line in enumerate(text.split("\n"), start=1) if HERE in line]
    assert len(found) == 1, f"the test must mark one line, not {found}"
    return found[0]


def check_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, text: str, key: str, *words: str, settings: tuple[str, ...] = ()
) -> str:
    """`fedsim check` refuses the text by file, line and key, in one line with all the words; the line."""
    file = folder / "experiment.toml"
    file.write_text(text, encoding="utf-8")
    arguments = [part for setting in settings for part in ("--set", setting)]
    answer = ask(capsys, "check", str(file), *arguments)
    place = f"--set {settings[-1]}" if settings else f"{file}:{marked(text)}"
    assert answer.code == 2, answer
    assert len(answer.problems) == 1, answer.err
    problem = answer.problems[0]
    assert problem.startswith(f"{place}: {key}: "), problem
    for word in words:
        assert word in problem, problem
    assert answer.out == ""
    assert [path.name for path in folder.iterdir()] == [file.name]
    return problem
