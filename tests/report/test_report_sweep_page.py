"""The page of a sweep: what it shows, what it survives, that it stands alone, and where its marks lie."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import made_sweep
import numpy as np
import pytest
from outline import Outline
from PIL import Image

from fedsim.errors import InputError
from fedsim.report import planes
from fedsim.report.curves import Curve, curves
from fedsim.report.pictures import comparison
from fedsim.report.planes import Mark, place, plane
from fedsim.report.sweep_charts import any_rows
from fedsim.report.sweep_page import render, write
from fedsim.report.sweep_pictures import Album, cut_out


def words_of(page: str) -> str:
    body = re.sub(r"<(style|svg)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.fixture
def small() -> dict[str, Any]:
    return made_sweep.results(columns=4, rows=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of all 39 cells."""
    folder = made_sweep.write(tmp_path_factory.mktemp("sweep") / "whole", made_sweep.results(), most=2)
    path = write(folder)
    assert path == folder / "report.html"
    first = path.read_bytes()
    assert write(folder).read_bytes() == first
    assert sorted(one.name for one in folder.iterdir()) == ["cells", "report.html", "results.json"]
    return first.decode()


def test_nothing_is_loaded_from_outside_and_the_page_is_small(whole: str) -> None:
    outline = Outline(whole)
    for tag, name, value in outline.attributes:
        if name in ("src", "href", "action", "data", "srcset", "poster", "xlink:href"):
            assert value.startswith(("data:image/png;base64,", "#")), (tag, name, value[:60])
        assert not name.startswith("on")
    assert not outline.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    style = re.search(r"<style>(.*?)</style>", whole, re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "http://" not in whole
    assert "https://" not in whole
    assert "default-src 'none'" in html.unescape(whole)
    # 39 cells, 24 of them attacked by a second adversary.
    assert whole.count("data:image/png;base64,") == 63
    assert len(whole) < 8e6


def test_pictures_and_drawings_have_names_and_tables_have_scopes(whole: str) -> None:
    assert all(re.search(r'alt="[^"]{20,}"', image) for image in re.findall(r"<img[^>]*>", whole))
    drawings = re.findall(r"<svg[^>]*>", whole)
    assert len(drawings) == 2
    assert all('role="img"' in drawing and "aria-label=" in drawing for drawing in drawings)
    assert all("scope=" in cell for cell in re.findall(r"<th\b[^>]*>", whole))
    assert whole.count("<h1>") == 1


def test_the_page_says_what_came_out(whole: str) -> None:
    words = words_of(whole)
    assert "All 39 cells are done." in words
    assert "scale tiny" in words
    # Ours, the published one, the difference.
    assert "mean 0.24 0.19 +0.05" in words
    assert "The published LPIPS is by VGG, ours by squeeze" in words
    assert "LPIPS 0.30" in words
    order = [
        words.index(title) for title in ("LPIPS (squeeze)", "Of each cell its first images", "Marks of one column")
    ]
    assert order == sorted(order)


def marks_of(page: str, number: int) -> dict[str, tuple[float, float]]:
    """By the words of each mark, where it lies, as fractions of the shares that the axes' ticks tell."""
    drawing = re.findall(r"<svg.*?</svg>", page, re.DOTALL)[number]
    tree = ElementTree.fromstring(drawing)
    found = {}
    for spot in tree.findall("g[@class='spot']"):
        title, mark = spot.findtext("title") or "", spot[1]
        if mark.tag == "circle":
            found[title] = (float(mark.get("cx", "nan")), float(mark.get("cy", "nan")))
    ticks: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for text in tree.findall("text[@class='tick']"):
        if re.fullmatch(r"[\d.]+( %)?", text.text or ""):
            value = float((text.text or "").removesuffix(" %"))
            is_x = (text.text or "").endswith("%")
            ticks[is_x].append((float(text.get("x" if is_x else "y", "nan")) - (0 if is_x else 4), value))

    def scaled(at: float, known: list[tuple[float, float]]) -> float:
        (start, low), (end, high) = known[0], known[-1]
        return low + (at - start) / (end - start) * (high - low)

    return {title: (scaled(x, ticks[True]), scaled(y, ticks[False])) for title, (x, y) in found.items()}


def test_marks_of_the_plane_lie_where_the_numbers_say(whole: str) -> None:
    paper, corrected = marks_of(whole, 0), marks_of(whole, 1)
    assert len(paper) == 13
    title = next(one for one in paper if one.startswith("Pruning 0.9, batch 1:"))
    assert paper[title] == pytest.approx((70.57, 1 - 0.40), abs=0.02)
    # In the corrected protocol, the adversary that knows the defense leaks more: 1 - (0.35 + 0.05 - 0.07 + 0.06).
    title = next(one for one in corrected if one.startswith("Pruning 0.9, batch 1:"))
    assert corrected[title] == pytest.approx((70.57, 1 - 0.39), abs=0.02)
    assert "(Inversion, defense known)" in title


def test_each_column_is_labelled_once_and_no_label_covers_another(whole: str) -> None:
    for drawing in re.findall(r"<svg.*?</svg>", whole, re.DOTALL):
        labels = [node.text for node in ElementTree.fromstring(drawing).findall("text[@class='called']")]
        assert sorted(labels, key=str) == sorted(made_sweep.LABELS)


def test_labels_keep_off_marks_and_each_other() -> None:
    rng = np.random.default_rng(3)
    xs = 500 + rng.uniform(-120, 120, 13)
    groups = {name: [(x, y) for y in rng.uniform(80, 380, 3)] for name, x in zip(made_sweep.LABELS, xs, strict=True)}
    inside = (50.0, 40.0, 760.0, 420.0)
    placed = place(groups, inside)
    boxes = [one.box for one in placed.values()]
    marks = [(x - 6, y - 6, x + 6, y + 6) for spots in groups.values() for x, y in spots]
    overlaps = [planes._overlap(a, b) for i, a in enumerate(boxes) for b in [*boxes[:i], *marks]]
    assert max(overlaps) == 0
    assert all(planes._outside(box, inside) == 0 for box in boxes)


def test_without_lpips_the_plane_names_another_score(small: dict[str, Any], tmp_path: Path) -> None:
    for cell in small["cells"]:
        for hit in cell["attacks"]:
            hit["values"].pop("lpips")
            hit["values"].pop("lpips_paper")
            hit["lpips_note"] = "not available: no weights"
    page = render(small, tmp_path)
    Outline(page)
    assert "leakage: SSIM" in page
    assert "1 − LPIPS" not in page
    assert words_of(page).count("LPIPS not available: no weights") == 2  # below a table of each protocol
    marks = marks_of(page, 1)
    title = next(one for one in marks if one.startswith("None, batch 1:"))
    assert marks[title][1] == pytest.approx(0.9 - 0.24, abs=0.02)


def test_failed_and_waiting_cells_are_told_at_the_top(small: dict[str, Any], tmp_path: Path) -> None:
    small["cells"][0].update(status="failed", error="out of <memory>", attacks=[])
    small["cells"][1].update(status="waiting", attacks=[], training=None)
    words = words_of(render(small, tmp_path))
    assert "6 of 8 cells done, 1 failed, 1 waiting." in words
    assert "defense None, batch 1 failed: out of <memory>" in words
    assert "1 of 8 cells have not been run" in words


def test_strings_are_shown_and_never_obeyed(small: dict[str, Any], tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=y>{{ 7*7 }}"
    clean = Outline(render(small, tmp_path)).tags
    small |= {
        "name": evil,
        "title": evil,
        "scale": evil,
        "show": ["table", "plane", "pictures", "lines", "costs", evil],
    }
    for axis in small["axes"]:
        for point in axis["points"]:
            point["label"] = evil
    for cell in small["cells"]:
        for hit in cell["attacks"]:
            hit |= {"label": evil, "lpips_net": evil, "lpips_note": evil, "pictures": [evil]}
    small["cells"][0] |= {"status": "failed", "error": evil}
    small["costs"] = [{evil: evil}]
    small["chart"] = {"x": "batch", "y": "lpips", "lines": "defense"}
    page = render(small, tmp_path)
    outline = Outline(page)
    assert outline.tags <= clean
    assert not any(
        name.startswith("on") or "evil" in value
        for _, name, value in outline.attributes
        if name != "aria-label" and name != "alt"
    )
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", page)


@pytest.mark.parametrize(
    "value",
    [None, True, "x", -1, 1e308, 10**400, float("nan"), float("inf"), [], {}, [{}], [[]]],
    ids=lambda value: repr(value)[:12],
)
def test_no_value_of_any_key_breaks_the_page(small: dict[str, Any], tmp_path: Path, value: Any) -> None:
    small["show"] = ["table", "pictures", "plane", "lines", "labels", "costs", "assumptions"]
    small |= {
        "chart": {"x": "batch", "y": "lpips", "lines": "defense"},
        "labels": [{"batch": 4, "distinct_share": 0.5}],
    }
    small |= {"costs": [{"hours": 3}], "assumptions": [{"attack": "x"}]}
    variants = [{**small, key: value} for key in small]
    variants += [
        {**small, "show": list(small["show"]), "table": {**small["table"], key: value}} for key in small["table"]
    ]
    cell = small["cells"][0]
    odd = [{**cell, key: value} for key in cell] + [
        {**cell, "attacks": [{**cell["attacks"][0], key: value}]} for key in cell["attacks"][0]
    ]
    odd += [
        {**cell, "training": {"test_accuracy": value}},
        {**cell, "attacks": [{"adversary": "inversion", "values": {"lpips": {"mean": value}}}]},
    ]
    variants += [{**small, "cells": [one, *small["cells"][1:3]]} for one in odd]
    variants.append(
        {
            **small,
            "labels": [{"batch": value, "distinct_share": value, "histogram": value}, value],
            "costs": [{"a": value}],
        }
    )
    for results in variants:
        page = render(results, tmp_path)
        drawn = re.findall(r' (?:x|y|cx|cy|r|x1|y1|x2|y2|width|height|points|d)="([^"]*)"', page)
        assert not [number for number in drawn if re.search(r"nan|inf", number)]


def test_what_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"results\.json"):
        write(tmp_path)
    for content in ("{", "[1]", "\xff"):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(InputError, match="run the sweep again"):
            write(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    assert "There is nothing to show yet." in words_of(write(tmp_path).read_text())


def test_lines_over_an_axis_of_numbers(small: dict[str, Any], tmp_path: Path) -> None:
    small |= {"show": ["lines"], "chart": {"x": "batch", "y": "lpips", "lines": "defense"}}
    page = render(small, tmp_path)
    words = words_of(page)
    assert "None 1 0.30" in words
    assert "Pruning 0.9 16 0.62" in words
    drawing = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", page, re.DOTALL)[0])
    assert len(drawing.findall("polyline")) == 4


def test_a_curve_goes_in_proportion_or_by_even_steps() -> None:
    def places(values: list[float]) -> list[float]:
        points = [(x, 0.5) for x in values]
        drawing = curves([Curve("a", points)], name="n", x_label="x", y_label="y", written=str)
        line = ElementTree.fromstring(str(drawing)).find("polyline")
        assert line is not None
        xs = [float(pair.split(",")[0]) for pair in line.get("points", "").split()]
        return [(x - xs[0]) / (xs[-1] - xs[0]) for x in xs]

    assert places([2, 1, 5]) == pytest.approx([0, 0.25, 1], abs=0.01)
    assert places([0, 0.001, 0.01, 0.5]) == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=0.01)
    assert curves([Curve("a", [(1, math.nan)])], name="n", x_label="x", y_label="y", written=str) is None


def test_labels_in_batches_are_drawn_from_shares_and_histograms(tmp_path: Path) -> None:
    results = {
        "show": ["labels"],
        "labels": [
            {"batch": 2, "distinct_share": 0.9, "histogram": {"1": 90, "2": 10}},
            {"batch": 4, "distinct_share": 0.5, "histogram": [0, 50, 40, 10]},
        ],
    }
    words = words_of(render(results, tmp_path))
    assert "2 90.0 %" in words
    assert "4 50.0 %" in words
    assert "2 1.10" in words
    assert "4 1.60" in words


def test_any_list_of_tables_is_a_table() -> None:
    cells = any_rows("x", [{"defense": "mixup", "hours": 12.345}, {"hours": 28473894.2, "tags": ["a", "b"]}, 3])
    assert cells is not None
    assert cells.header == ("defense", "hours", "tags")
    assert cells.numeric == (False, True, False)
    assert cells.rows == (("mixup", "12.35", "-"), ("-", "28,473,894", "a and b"))
    assert any_rows("x", [{}]) is None


def test_images_are_cut_out_at_their_own_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 256, (2, 20, 3, 8, 8), dtype=np.uint8)
    comparison(truth, guess, tmp_path / "a.png")
    pairs = cut_out(np.asarray(Image.open(tmp_path / "a.png").convert("RGBA")), 4)
    assert len(pairs) == 4
    for index, (above, below) in enumerate(pairs):
        assert (above == truth[index].transpose(1, 2, 0)).all()
        assert (below == guess[index].transpose(1, 2, 0)).all()
    # Several pictures of a cell share one strip.
    comparison(truth[:1], guess[:1], tmp_path / "b.png")
    source, images, _ = Album(tmp_path).strip(["b.png", "b.png", "a.png"], 4)
    assert images == 4
    strip = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert strip.size == (4 * 9 - 1, 17)


def test_pictures_that_cannot_be_shown_say_why(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    comparison(np.zeros((1, 1, 8, 8)), np.ones((1, 1, 8, 8)), tmp_path / "secret.png")
    (folder / "no.png").write_text("no picture")
    (folder / "cut.png").write_bytes((tmp_path / "secret.png").read_bytes()[:40])
    album = Album(folder)
    assert "lies outside" in album.strip(["../secret.png"], 4)[2]
    assert "missing" in album.strip(["gone.png"], 4)[2]
    assert "not a PNG" in album.strip(["no.png"], 4)[2]
    assert "damaged" in album.strip(["cut.png"], 4)[2]
    assert "no picture" in album.strip([], 4)[2]
    comparison(np.zeros((1, 1, 8, 8)), np.ones((1, 1, 8, 8)), folder / "a.png")
    assert album.strip(["a.png"], 4)[1] == 1
    poor = Album(folder, budget=10)
    assert "left out" in poor.strip(["a.png"], 4)[2]
    assert poor.left_out == 1


def test_kinds_of_marks_are_told_in_the_legend() -> None:
    marks = [Mark("a", kind, 0.5, 0.1 * kind) for kind in range(7)]
    drawing = plane(marks, name="n", kinds=[f"batch {kind}" for kind in range(7)], x_label="x", y_label="y")
    tree = ElementTree.fromstring(str(drawing))
    texts = [node.text for node in tree.iter("text")]
    assert {f"batch {kind}" for kind in range(7)} <= set(texts)
    assert texts.count("a") == 1
    assert plane([Mark("a", 0, math.nan, 1)], name="n", kinds=["k"], x_label="x", y_label="y") is None


def test_results_are_read_from_the_folder(small: dict[str, Any], tmp_path: Path) -> None:
    folder = made_sweep.write(tmp_path / "s", small, pictures=False)
    assert json.loads((folder / "results.json").read_text())["name"] == "gradattack/table2"
    assert "no picture was stored" not in words_of(write(folder).read_text())
