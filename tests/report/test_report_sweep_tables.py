"""The tables of a sweep: the numbers, what stands for missing ones, and what is said below them."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from typing import Any

import made_sweep
import pytest
from rich.console import Console

from fedsim.report.sweep_blocks import blocks, strongest
from fedsim.report.sweep_console import console
from fedsim.report.sweep_reading import sweep_of
from fedsim.report.sweep_tables import cells_csv, markdown
from fedsim.report.sweep_tables import csv as table_csv

Lines = list[dict[str, str]]


def lines_of(written: str) -> Lines:
    return list(csv.DictReader(io.StringIO(written)))


def found(lines: Lines, **keys: str) -> dict[str, str]:
    hits = [line for line in lines if all(line[key] == value for key, value in keys.items())]
    assert len(hits) == 1, (keys, len(hits))
    return hits[0]


def printed(results: dict[str, Any], width: int = 170) -> str:
    screen = Console(file=io.StringIO(), width=width, color_system=None)
    for part in console(results):
        screen.print(part)
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


@pytest.fixture
def small() -> dict[str, Any]:
    return made_sweep.results(columns=4, rows=2)


def cell_of(results: dict[str, Any], defense: str, batch: str) -> dict[str, Any]:
    cell: dict[str, Any] = next(one for one in results["cells"] if one["at"] == {"defense": defense, "batch": batch})
    return cell


def test_ours_the_published_and_the_difference_by_protocol(small: dict[str, Any]) -> None:
    lines = lines_of(table_csv(small))
    mean = found(lines, protocol="paper", adversary="inversion", row="1", column="p90", value="lpips", statistic="mean")
    assert float(mean["ours"]) == pytest.approx(0.40)
    assert float(mean["published"]) == pytest.approx(0.35)
    assert float(mean["difference"]) == pytest.approx(0.05)
    corrected = found(
        lines, protocol="corrected", adversary="inversion", row="1", column="p90", value="lpips", statistic="mean"
    )
    assert float(corrected["ours"]) == pytest.approx(0.46)
    assert float(corrected["difference"]) == pytest.approx(0.11)
    best = found(
        lines, protocol="paper", adversary="inversion", row="16", column="none", value="lpips", statistic="best"
    )
    assert (best["ours"], best["published"]) == ("0.23", "0.18")
    trained = found(lines, value="test_accuracy", column="p50")
    assert (trained["protocol"], trained["statistic"]) == ("", "training")
    assert float(trained["difference"]) == pytest.approx(-0.2)
    assert found(lines, value="time_ratio", column="p50")["published"] == ""


def test_the_best_of_lpips_is_the_smallest_and_the_strongest_adversary_leaks_most(small: dict[str, Any]) -> None:
    sweep = sweep_of(small)
    paper, corrected = sweep.protocols
    cell = sweep.at(defense="p90", batch="1")[0]
    # Of LPIPS the smaller mean leaks more, of PSNR the larger one; the paper's protocol counts one adversary alone.
    hit = strongest(cell, corrected, "lpips")
    assert hit is not None
    assert (hit[0].adversary, hit[1]) == ("inversion-aware", pytest.approx(0.39))
    by_noise = strongest(cell, corrected, "psnr")
    assert by_noise is not None
    assert by_noise[0].adversary == "inversion-aware"
    by_paper = strongest(cell, paper, "lpips")
    assert by_paper is not None
    assert (by_paper[0].adversary, by_paper[1]) == ("inversion", pytest.approx(0.40))


def test_markdown_stacks_the_three_and_names_net_and_protocol(small: dict[str, Any]) -> None:
    text = markdown(small)
    rows = text.splitlines()
    start = rows.index("| 1 | mean | 0.24 | 0.24 | 0.27 | 0.40 |")
    assert rows[start + 1] == "|  | published | 0.19 | 0.19 | 0.22 | 0.35 |"
    assert rows[start + 2] == "|  | difference | +0.05 | +0.05 | +0.05 | +0.05 |"
    assert "| test accuracy % |  | 73.4 | 73.2 | 73.0 | 70.6 |" in rows
    assert "|  | difference | -20.0 | -20.0 | -20.0 | -20.0 |" in rows
    assert text.count("LPIPS (squeeze)") == 3
    assert "The published LPIPS is by VGG, ours by squeeze" in text
    assert "(300 iterations)" in text
    # Each protocol says how it scores, and the corrected one that a difference is one of scoring, too.
    paper, corrected = text.split("## Corrected")
    assert "closest to, and one image may be taken more than once" in paper
    assert "PSNR" not in paper
    assert "scored the same way in every column" in corrected
    assert "a difference to them is one of the attack and of the scoring together" in corrected
    assert "closest to" not in corrected


def test_no_word_on_networks_where_they_agree(small: dict[str, Any]) -> None:
    for cell in small["cells"]:
        for hit in cell["attacks"]:
            hit["lpips_net"] = "vgg"
    assert "not on one scale" not in markdown(small)
    small["cells"][0]["attacks"][0]["lpips_net"] = "alex"
    text = markdown(small)
    assert "LPIPS (alex, vgg)" in text
    assert "cannot be compared with one another" in text


def test_an_adversary_has_the_columns_that_it_attacks(small: dict[str, Any]) -> None:
    aware = [block for block in blocks(sweep_of(small)) if block.adversary == "inversion-aware"]
    assert [column.name for column in aware[0].columns] == ["p50", "p70", "p90"]
    assert "Not attacked by this adversary: None." in aware[0].notes
    assert aware[0].training
    assert not aware[1].training


def test_failed_waiting_and_unavailable_are_told_apart(small: dict[str, Any]) -> None:
    cell_of(small, "none", "1").update(status="failed", error="out of memory", attacks=[])
    cell_of(small, "p50", "1").update(status="waiting", attacks=[], training=None)
    lost = cell_of(small, "p70", "1")["attacks"][0]
    lost.update(lpips_note="not available: no weights")
    del lost["values"]["lpips"]
    text = markdown(small)
    corrected = text.split("## Corrected")[1]
    assert "| 1 | mean | failed | - | - | 0.46 |" in corrected
    assert "|  | difference | - | - | - | +0.11 |" in corrected
    assert text.count("LPIPS not available: no weights") == 1
    lines = lines_of(table_csv(small))
    gone = found(
        lines, protocol="corrected", adversary="inversion", row="1", column="none", value="lpips", statistic="mean"
    )
    assert (gone["ours"], gone["published"], gone["difference"]) == ("", "0.19", "")
    terminal = printed(small)
    assert "failed" in terminal
    assert "of 8 cells, 6 done, 1 failed, 1 waiting" in terminal


def test_the_long_form_has_a_line_for_each_score(small: dict[str, Any]) -> None:
    cell_of(small, "none", "1").update(status="failed", error="out of memory", attacks=[])
    lines = lines_of(cells_csv(small))
    failed = found(lines, defense="none", batch="1")
    assert (failed["status"], failed["note"], failed["mean"]) == ("failed", "out of memory", "")
    score = found(lines, defense="p90", batch="16", adversary="inversion-aware", value="psnr")
    assert float(score["mean"]) == pytest.approx(22 - 18 * 0.49)
    assert (score["images"], score["iterations"], score["lpips_net"]) == ("16", "300", "")
    assert float(score["training_test_accuracy"]) == pytest.approx(0.7057)
    assert found(lines, defense="p90", batch="16", adversary="inversion", value="lpips")["lpips_net"] == "squeeze"
    assert found(lines, defense="p90", batch="1", adversary="inversion", value="label_accuracy")["mean"] == "1"


def test_a_column_with_several_trainings_says_so(small: dict[str, Any]) -> None:
    cell = cell_of(small, "none", "16")
    cell["training"] = cell["training"] | {"hash": "another", "test_accuracy": 0.5337}
    lines = lines_of(table_csv(small))
    assert float(found(lines, value="test_accuracy", column="none")["ours"]) == pytest.approx(0.6337)
    assert "test accuracy %: the mean of the rows' own trainings in None." in markdown(small)


def test_axes_that_are_not_laid_out_give_a_table_each(small: dict[str, Any]) -> None:
    small["axes"].append({"name": "tv", "points": [{"name": "0.1"}, {"name": "0.5"}]})
    for cell in list(small["cells"]):
        small["cells"].append(cell | {"at": cell["at"] | {"tv": "0.5"}, "status": "waiting", "attacks": []})
        cell["at"]["tv"] = "0.1"
    lines = lines_of(table_csv(small))
    place = {
        "protocol": "paper",
        "adversary": "inversion",
        "row": "1",
        "column": "none",
        "value": "lpips",
        "statistic": "mean",
    }
    assert found(lines, **place, tv="0.1")["ours"] == "0.24"
    assert found(lines, **place, tv="0.5")["ours"] == ""
    assert "tv 0.5 · Gradient inversion" in markdown(small)


def test_labels_are_shown_and_never_obeyed(small: dict[str, Any]) -> None:
    small["axes"][0]["points"][0]["label"] = "a|b <script> *x* `y` [z](http://evil.example) \x1b[31m"
    text = markdown(small)
    assert "a\\|b &lt;script&gt; \\*x\\* \\`y\\` [z]\\(http://evil.example)" in text
    assert "[bold]" in printed(small | {"title": "t", "name": "[bold]"})
    assert "\x1b" not in printed(small)


def test_the_terminal_has_a_line_for_each_column_with_its_difference(small: dict[str, Any]) -> None:
    text = printed(small)
    row = next(line for line in text.splitlines() if line.strip().startswith("Pruning 0.9"))
    assert "70.6 (-20.0)" in row
    assert "0.40 (+0.05)" in row
    assert "As published · Gradient inversion (300 iterations) · LPIPS (squeeze)" in text


@pytest.mark.parametrize(
    "value",
    [None, True, "x", -1, 1e308, float("nan"), float("inf"), [], {}, [{}], [None], [[]]],
    ids=lambda value: repr(value)[:12],
)
def test_no_value_of_any_key_breaks_a_table(small: dict[str, Any], value: Any) -> None:
    attack = small["cells"][0]["attacks"][0]
    mixed = [{**attack, key: value} for key in attack]
    mixed += [{**attack, "values": {"lpips": value}}, {**attack, "values": {"lpips": {"mean": value}}}]
    cells = [{**small["cells"][0], "attacks": mixed}, *({**small["cells"][0], key: value} for key in small["cells"][0])]
    variants = [{**small, key: value} for key in small] + [{**small, "cells": [*cells, value]}]
    variants += [{**small, "table": {**small["table"], key: value}} for key in small["table"]]
    variants += [{**small, "published": {"lpips": {"mean": {"1": value}}, "training": value}}, {}]
    for results in variants:
        assert markdown(results).startswith("# ")
        assert table_csv(results).startswith("protocol,adversary,row,column,value,statistic,ours,published,difference")
        assert "nan" not in cells_csv(results)
        printed(results)


def test_tables_need_no_torch() -> None:
    code = (
        "import sys, fedsim.report.sweep_tables, fedsim.report.sweep_page, fedsim.report.sweep_console as c;"
        "c.console({}); assert 'torch' not in sys.modules and 'lpips' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_attacker_is_the_first_of_its_adversaries_that_a_cell_has() -> None:
    results = made_sweep.results(columns=3, rows=1)
    both = ("inversion-aware", "inversion")
    for cell, names in zip(results["cells"], (both[::-1], both[1:], ()), strict=True):
        means = {"inversion-aware": 0.1, "inversion": 0.2}
        cell["attacks"] = [made_sweep.attack(name, means[name], means[name], 4) for name in names]
    results["table"]["attackers"] = [{"name": "whoever", "label": "Whoever it is", "adversaries": list(both)}]
    results["table"]["protocols"] = [{"name": "paper", "adversaries": ["whoever"], "score": "lpips_paper"}]
    sweep = sweep_of(results)
    means_found = [[hit.values["lpips_paper"].mean for hit in cell.attacks] for cell in sweep.cells]
    assert means_found == [[0.1], [0.2], []]
    assert {block.label.partition(" (")[0] for block in blocks(sweep)} == {"Whoever it is"}


def test_a_failed_answer_stands_for_all_that_it_would_have_been() -> None:
    def attack(name: str, mean: float | None) -> dict[str, Any]:
        score = {} if mean is None else {"psnr": {"mean": mean, "best": mean, "std": 0.0, "n": 3}}
        status = "failed" if mean is None else "done"
        return {"adversary": name, "combined": True, "label": name, "values": score, "status": status}

    attacks = [attack("decoding-adam", 12.0), attack("decoding-aware", None)]
    results = {
        "name": "x",
        "axes": [{"name": "d", "points": [{"name": "ih4"}]}],
        "table": {
            "columns": "d",
            "values": ["psnr"],
            "attackers": [{"name": "aware", "adversaries": ["decoding-aware-adam", "decoding-adam"]}],
            "protocols": [{"name": "c", "adversaries": ["aware"]}],
        },
        "cells": [{"at": {"d": "ih4"}, "status": "done", "attacks": attacks}],
    }
    # Not the weaker attack's 12 dB in the name of the one that failed.
    assert "failed" in markdown(results) and "12.0" not in markdown(results)


def test_what_must_be_known_of_a_scale_is_said_everywhere() -> None:
    results = made_sweep.results(columns=2, rows=1) | {"words": "Small <and> quick."}
    assert "Small \\<and\\> quick." in markdown(results) or "Small &lt;and&gt; quick." in markdown(results)
    assert "Small <and> quick." in printed(results)
