"""Estimates of the time that is left, and how screens tell them."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from fedsim import screens
from fedsim.pace import LATELY, Pace, about
from fedsim.runs import RoundRecord


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_run_that_goes_on_is_not_thought_to_be_fast() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.step(6, 10) is None, "six steps before the clock was started say nothing"
    clock.now += 8
    assert pace.step(7, 10) == 24
    clock.now += 4
    assert pace.left() == 20, "time passes between two steps"
    clock.now += 100
    assert pace.left() == 0
    assert pace.step(10, 10) == 0


def test_the_first_steps_are_forgotten() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.step(0, 1000)
    clock.now += 500
    pace.step(1, 1000)
    for done in range(2, LATELY + 3):
        clock.now += 1
        left = pace.step(done, 1000)
    assert left == 1000 - (LATELY + 2)


def test_another_pass_starts_anew() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.step(0, 10)
    clock.now += 10
    pace.step(10, 10)
    assert pace.step(0, 10) is None
    assert pace.step(0, 10) is None, "the same step again is no step"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (7.4, "7 s"), (41, "40 s"), (100, "2 min"), (3500, "58 min"), (9000, "2.5 h"), (3e5, "3.5 days")],
)
def test_no_more_digits_than_an_estimate_has(seconds: float, words: str) -> None:
    assert about(seconds) == f"about {words}"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(screens, "Pace", lambda: Pace(clock))
    return clock


def test_plain_lines_tell_the_time_that_is_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    screen = screens.PlainScreen()
    for number in (7, 8, 10):
        screen.rounds(number, 10, RoundRecord(number, train_loss=0.5))
        clock.now += 20
    assert capsys.readouterr().out.splitlines() == [
        "round 7, train loss 0.500 (7/10)",
        "round 8, train loss 0.500 (8/10, about 40 s left)",
        "round 10, train loss 0.500 (10/10)",
    ]


def test_attacks_tell_it_each_for_itself(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screens, "PLAIN_EVERY", 0)
    screen = screens.PlainScreen()
    for name in ("a", "b"):
        screen.attack(name, 0, 1, "")
        clock.now += 100
    screen.attack("a", 50, 200, "objective 1")
    screen.attack("b", 20, 200, "")
    screen.attack("a", 1, 1, "objective 0.5")
    assert capsys.readouterr().out.splitlines() == [
        "attack a: started",
        "attack b: started",
        "attack a: 50/200, about 10 min left, objective 1",
        "attack b: 20/200, about 15 min left",
        "attack a: done, objective 0.5",
    ]


def test_machines_are_told_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    screen = screens.JsonScreen()
    for number in (2, 3):
        screen.rounds(number, 5, RoundRecord(number))
        clock.now += 1.5
    screen.attack("a", 0, 1, "")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["left_seconds"] for line in lines] == [None, 3.0, None]
    assert lines[1]["round"] == 3 and lines[1]["rounds"] == 5


def test_bars_tell_it_for_steps_of_minutes_too(clock: Clock) -> None:
    """rich's own estimate forgets what is older than half a minute, and so never has one for long rounds."""
    out = StringIO()
    with screens.TerminalScreen(Console(file=out, force_terminal=True, width=120)) as screen:
        screen.rounds(3, 6, RoundRecord(3))
        clock.now += 600
        screen.rounds(4, 6, RoundRecord(4))
        clock.now += 60
    assert "-:--" in out.getvalue() and "19:00" in out.getvalue()
