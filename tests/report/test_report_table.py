"""The tables, on a terminal and without one."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from fedsim.report.round_table import rounds_table, rounds_text
from fedsim.report.table import attacks_table, attacks_text

Make = Callable[..., dict[str, Any]]


def shown(table: Table) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_scores_have_their_units_and_nets(make_attack: Make) -> None:
    written = shown(attacks_table([make_attack()]))
    for word in (
        "PSNR dB",
        "SSIM",
        "LPIPS (squeeze)",
        "label acc.",
        "26.4",
        "0.88",
        "0.20",
        "100 %",
        "no defense",
        "11 s",
    ):
        assert word in written
    assert written.splitlines()[0].strip() == "Reconstructions"


def test_two_nets_are_told_apart(make_attack: Make) -> None:
    text = attacks_text([make_attack(), make_attack(lpips=0.3, lpips_net="alex")])
    assert "0.20 (squeeze)" in text
    assert "0.30 (alex)" in text


def test_what_is_missing_is_a_dash_with_its_reason(make_attack: Make) -> None:
    lines = [
        make_attack(lpips=None, lpips_note="not available: no weights"),
        make_attack(lpips=None, lpips_note="not available: no weights"),
        make_attack(psnr=None, ssim=float("nan"), status="failed", error="out of memory"),
        make_attack(psnr=float("inf"), ssim=float("nan")),
    ]
    text = attacks_text(lines)
    assert text.count("- [1]") == 2
    assert "[1] LPIPS not available: no weights" in text
    assert "geiping [2]" in text
    assert "[2] out of memory" in text
    assert "∞" in text
    assert "[3] not a number" in text
    assert "nan" not in text.lower()


def test_brackets_and_control_characters_are_not_obeyed(make_attack: Make) -> None:
    line = make_attack(adversary="[bold red]x[/nope]", error="\x1b[31mred\r\n", status="failed")
    for written in (shown(attacks_table([line])), attacks_text([line])):
        assert "[bold red]x[/nope]" in written
        assert "\x1b" not in written
        assert "\\x1b[31mred\\r\\n" in written


def test_plain_columns_stand_in_line(make_attack: Make) -> None:
    text = attacks_text([make_attack(), make_attack(adversary="a much longer name", psnr=9.0)])
    rows = text.splitlines()
    end = rows[0].index("SSIM") + len("SSIM")
    assert [row[end - 4 : end] for row in rows[1:]] == ["0.88", "0.88"]


def test_rounds() -> None:
    lines: list[dict[str, Any]] = [
        {"round": 0, "clients": [], "dropouts": [], "test_loss": 2.3, "test_accuracy": 0.114, "seconds": 0.5},
        {"round": 1, "clients": [0, 1], "dropouts": [{"client": 3, "reason": "crashed"}], "train_loss": float("nan")},
        {"no": "round"},
    ]
    for written in (shown(rounds_table(lines)), rounds_text(lines)):
        assert "11.4 %" in written
        assert "1 [1]" in written
        assert "[1] client 3: crashed" in written
        assert "epsilon" not in written
    assert "epsilon" in rounds_text([lines[0] | {"epsilon": 1.5}])


def test_what_privacy_cost_stands_beside_the_rounds() -> None:
    lines: list[dict[str, Any]] = [{"round": 0}, {"round": 1, "epsilon": 1.234, "delta": 1e-5}]
    written = rounds_text(lines)
    assert "epsilon at delta 1e-05" in written and "1.23" in written
    assert "no bound" not in written
    assert "no bound" in rounds_text([{"round": 1, "epsilon": None, "delta": 1e-5}])


def test_no_rows_no_trouble() -> None:
    assert attacks_text([]) == "Reconstructions: none"
    assert "Rounds" in shown(rounds_table([])) or shown(rounds_table([])) is not None
    assert attacks_text([{}]).count("\n") >= 1


def test_an_attack_after_labels_alone_has_a_reason_and_no_trouble(labels_alone: dict[str, Any]) -> None:
    text = attacks_text([labels_alone])
    assert text.count("- [1]") == 3
    assert "88 %" in text
    assert text.splitlines()[-1] == "[1] after the labels alone, no images"
    assert "88 %" in shown(attacks_table([labels_alone]))


def test_a_sum_of_clients_names_them_or_their_number(summed: dict[str, Any]) -> None:
    assert " 0+2+3 " in attacks_text([summed])
    text = attacks_text([summed | {"clients": list(range(60))}])
    assert " sum of 60 " in text
    assert "0+1" not in text


ENDINGS = {
    "plateau": "ended early: its objective fell no further",
    "time": "ended at its time limit",
    "mixtures": "some of the images may be mixtures of several private ones",
    "incomplete": "not every image could be recovered",
    "underdetermined": "the gradient leaves the image open; the smallest one that fits was taken",
}


@pytest.mark.parametrize(("status", "words"), ENDINGS.items())
def test_how_an_attack_ended_is_a_note_in_plain_words(make_attack: Make, status: str, words: str) -> None:
    text = attacks_text([make_attack(status=status), make_attack()])
    assert text.splitlines()[-1] == f"[1] {words}"
    assert "geiping [1]" in text


def test_a_word_that_is_not_known_is_told_as_it_is(make_attack: Make) -> None:
    assert "it ended as 'lost'" in attacks_text([make_attack(status="lost")])
