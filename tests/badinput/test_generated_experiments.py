"""Ten thousand spoiled experiments and sweeps: each is read, and read back, or refused in words with a place.

A case is known by its number: `judge(drawn(NUMBER), file)` plays it again. All of them: FEDSIM_WHOLE=1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from badinput.generating import CHANGES, Case, drawn, drawn_sweep
from badinput.judging import Unclear, judge, judge_sweep
from badinput.spoiling import WAYS
from badinput.tables import WHOLE, Tally, tried

from fedsim import experiment_file, schema, toml_lines
from fedsim.schema import Problems

EXPERIMENTS, SWEEPS = (9000, 1000) if WHOLE else (940, 60)
TESTS = Path(__file__).parent.parent

Play = Callable[[int], "tuple[Iterable[str], Callable[[], str]]"]


def player(draw: Callable[[int], Case], answer: Callable[[Case, Path], str], file: Path) -> Play:
    def play(number: int) -> tuple[Iterable[str], Callable[[], str]]:
        case = draw(number)
        return case.kinds, lambda: answer(case, file)

    return play


@pytest.mark.timeout(900)
def test_every_spoiled_experiment_is_read_or_refused_in_words(tmp_path: Path) -> None:
    tally = Tally(("refused",))
    tried(tally, range(EXPERIMENTS), player(drawn, judge, tmp_path / "experiment.toml"))
    print("\n" + tally.table("experiments"))
    tally.check()
    assert tally.cases["valid"] > EXPERIMENTS / 20, "a test in which nothing is valid shows little"
    rare = {kind for kind in (*CHANGES, *WAYS, "--set") if sum(tally.found[kind, how] for how in tally.cases) < 5}
    assert not rare, f"too seldom: {rare}"


@pytest.mark.timeout(900)
def test_every_spoiled_sweep_is_read_or_refused_in_words(tmp_path: Path) -> None:
    tally = Tally(("refused",))
    tried(tally, range(SWEEPS), player(drawn_sweep, judge_sweep, tmp_path / "sweep.toml"))
    print("\n" + tally.table("sweeps"))
    tally.check()
    assert 0 < tally.cases["valid"] < SWEEPS


def test_a_case_is_the_same_every_time() -> None:
    for number in range(40):
        assert repr(drawn(number)) == repr(drawn(number))
        assert repr(drawn_sweep(number)) == repr(drawn_sweep(number))


SCRIPT = textwrap.dedent("""
    import sys
    from pathlib import Path
    from badinput.generating import drawn
    from badinput.judging import judge
    for number in {numbers!r}:
        judge(drawn(number), Path({file!r}))
        heavy = sorted({{"torch", "ray", "flwr", "torchvision", "numpy"}} & set(sys.modules))
        assert not heavy, (number, heavy)
""")


def test_nothing_heavy_is_imported_by_any_of_it(tmp_path: Path) -> None:
    script = SCRIPT.format(numbers=list(range(2000 if WHOLE else 300)), file=str(tmp_path / "experiment.toml"))
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    command, environment = [sys.executable, "-c", script], {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


# --- the yardstick: what is broken on purpose is found ---------------------------------------------------------------


def raising(error: Exception) -> Callable[..., None]:
    def broken(*arguments: Any) -> None:
        raise error

    return broken


def one_line_late(text: str) -> dict[toml_lines.Path, int]:
    return {path: line + 1 for path, line in toml_lines.locate(text).items()}


def without_place(self: Problems, path: toml_lines.Path, problem: str) -> None:
    self.found.append(problem)


def without_key(self: Problems, path: toml_lines.Path, problem: str) -> None:
    self.found.append(f"{self._place(path)}: {problem}")


def endless(*arguments: Any) -> None:
    while True:
        json.dumps({})


@pytest.mark.parametrize(
    ("where", "name", "instead", "words"),
    [
        (experiment_file, "check", raising(KeyError("x")), "ends with KeyError"),
        (experiment_file, "check", raising(MemoryError()), "ends with MemoryError"),
        (experiment_file, "check", endless, "no answer within"),
        (experiment_file, "locate", one_line_late, "is not on line|names line"),
        (experiment_file, "as_table", lambda experiment: {"rounds": 1}, "refused once it is written out"),
        (Problems, "add", without_place, "does not name the source"),
        (Problems, "add", without_key, "names no key"),
        (schema, "_words", lambda item: f"{item['input']!r}: <class 'int'> expected", "speaks of '<class'"),
    ],
)
def test_what_is_no_clear_answer_is_found(
    where: Any, name: str, instead: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, instead)
    with pytest.raises(Unclear, match=words):
        for number in range(60):
            judge(drawn(number), tmp_path / "experiment.toml")
