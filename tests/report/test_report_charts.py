"""Ticks, scales and the small words of a report."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest
from markupsafe import Markup

from fedsim.report import charts, diagram, formats, words
from fedsim.report.svg import tag


def parsed(chart: Markup | None) -> ElementTree.Element:
    assert chart is not None
    return ElementTree.fromstring(str(chart))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 2.5, [0, 0.5, 1.0, 1.5, 2.0, 2.5]),
        (3, 47, [10, 20, 30, 40]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_ticks_of_rounds_are_whole_numbers() -> None:
    assert charts.ticks(0, 3, 8, integral=True) == [0, 1, 2, 3]
    assert charts.ticks(0, 20, 8, integral=True) == [0, 5, 10, 15, 20]
    assert charts.ticks(math.nan, 1) == []


def test_a_line_is_broken_where_a_value_is_not_finite() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, math.nan), (3.0, 1.0), (4.0, 0.5)]
    drawing = parsed(charts.lines([charts.Series("test", "s-test", points)], name="x"))
    assert len(drawing.findall("polyline")) == 2
    assert charts.lines([charts.Series("test", "s-test", [(0, math.inf)])], name="x") is None
    assert charts.lines([], name="x") is None


def test_one_point_is_a_dot() -> None:
    drawing = parsed(charts.lines([charts.Series("test", "s-test", [(0, 0.1)])], name="x", percent=True))
    assert not drawing.findall("polyline")
    assert drawing.findall("g/circle")


def test_an_objective_above_zero_is_logarithmic_and_others_are_not() -> None:
    history = [(0.0, 1.0), (10.0, 0.01)]
    texts = [node.text for node in parsed(charts.objective(history, name="x", low=0.01, high=1.0)).iter("text")]
    assert {"1", "0.1", "0.01"} <= set(texts)
    assert charts.scale_of([history, [(0, -3.0), (1, math.nan)]]) == (-3.0, 1.0)
    texts = [node.text for node in parsed(charts.objective(history, name="x", low=-3.0, high=1.0)).iter("text")]
    assert "-2" in texts
    assert charts.objective([], name="x", low=math.nan, high=math.nan) is None


@pytest.mark.parametrize(("worst", "shown"), [(0.1, True), (-0.2, False), (-0.7, False)])
def test_the_scale_leaves_out_a_number_that_would_run_into_its_words(worst: float, shown: bool) -> None:
    drawn = str(charts.scale([charts.Lane("", 0.4, [worst])], name="x"))
    assert (">0.75<" in drawn) is shown
    assert "1 identical" in drawn and ">0.5<" in drawn


def test_the_scale_marks_every_image_and_keeps_negatives_inside() -> None:
    drawing = parsed(
        charts.scale([charts.Lane("", 0.4, [-0.2, 0.5, math.nan]), charts.Lane("b", math.nan, [])], name="x")
    )
    kinds = [node.get("class") for node in drawing.iter("circle")]
    assert kinds == ["image", "image", "mean"]
    assert all(0 < float(node.get("cx", "0")) < 420 for node in drawing.iter("circle"))


def test_bars_are_as_long_as_the_counts() -> None:
    bars = parsed(charts.stack([10, 0, 30], longest=80, name="x")).findall("g/rect")
    assert [round(float(bar.get("width", "0"))) for bar in bars] == [44, 134]
    assert charts.stack([0, 0], longest=80, name="x") is None


def test_labels_at_line_ends_do_not_overlap() -> None:
    moved = charts.apart([100.0, 101.0, 99.0], 30.0, 240.0)
    assert min(abs(a - b) for a in moved for b in moved if a is not b) >= 30
    assert max(moved) <= 226


@pytest.mark.parametrize(("vantage", "eyes"), [("link", 2), ("server", 1), ("client", 1), ("elsewhere", 0)])
def test_the_adversary_is_drawn_where_it_stands(vantage: str, eyes: int) -> None:
    drawing = parsed(
        diagram.threat(vantage, targets=[0, 2], clients=list(range(9)), member=1 if vantage == "client" else None)
    )
    assert len([node for node in drawing.iter("circle") if node.get("class") == "eye-pupil"]) == eyes
    assert "and 5 more" in [node.text for node in drawing.iter("text")]


def test_svg_escapes() -> None:
    assert str(tag("text", "<b>", class_='"x')) == '<text class="&#34;x">&lt;b&gt;</text>'


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"name": "gradient_pruning", "ratio": 0.9}, "pruning 0.9"),
        ({"name": "gradient_noise", "kind": "laplace", "std": 0.1}, "Laplace noise 0.1"),
        ({"name": "gradient_clipping", "max_norm": 1.0, "scope": "global"}, "clipping (max norm 1, scope global)"),
        ({"name": "mixup"}, "mixup"),
        ({}, "unnamed defense"),
    ],
)
def test_defenses_in_words(entry: dict[str, object], expected: str) -> None:
    assert words.defense(entry) == expected


def test_numbers() -> None:
    assert formats.fixed(-0.001) == "0.00"
    assert formats.fixed(math.inf) == "∞"
    assert formats.fixed(math.nan) == formats.percent(None) == formats.duration(None) == "-"
    assert formats.duration(59.6) == "1 min 00 s"
    assert formats.duration(3720) == "1 h 02 min"
    assert formats.counted(1, "image") == "1 image"
    assert formats.counted(None, "image") == "an unknown number of images"
    assert formats.numbered([3, 1, 2, 7], "client") == "clients 1 to 3 and 7"
    assert formats.numbered([], "client") == "no client"
    assert formats.plain(10**5000) == "a very large number"
