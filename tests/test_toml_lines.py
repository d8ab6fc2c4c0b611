"""On which line a key stands: by hand, and against what tomllib finds in the same text."""

from __future__ import annotations

import time
import tomllib
from typing import Any

import pytest
from asking import adversary, document, group

from fedsim.toml_lines import Path, locate

CASES: dict[str, tuple[str, dict[Path, int]]] = {
    "nothing": ("", {}),
    "comments": ("# a = 1\n\n  # b = 2\n", {}),
    "keys": ("a = 1\n\nb = 2", {("a",): 1, ("b",): 3}),
    "keys with signs": ("a-b_1 = 1\n2 = 3\n", {("a-b_1",): 1, ("2",): 2}),
    "header": ("[a]\nb = 1\n[c]\nd = 2\n", {("a",): 1, ("a", "b"): 2, ("c",): 3, ("c", "d"): 4}),
    "dotted header": ("[a.b]\nc = 1\n", {("a",): 1, ("a", "b"): 1, ("a", "b", "c"): 2}),
    "dotted header in tables": (
        "[[a]]\n[a.b.c]\nd = 1\n[[a.b.e]]\nf = 1\n",
        {("a", 0, "b"): 2, ("a", 0, "b", "c", "d"): 3, ("a", 0, "b", "e"): 4, ("a", 0, "b", "e", 0, "f"): 5},
    ),
    "spaced header": ("[ a . 'b c' ]\nd = 1\n", {("a", "b c"): 1, ("a", "b c", "d"): 2}),
    "dotted key": ("a.b = 1\na.c.d = 2\n", {("a",): 1, ("a", "b"): 1, ("a", "c"): 2, ("a", "c", "d"): 2}),
    "spaced key": ("a . b = 1\n", {("a", "b"): 1}),
    "quoted keys": ('"a.b" = 1\n\'c d\'.e = 2\n"\\u0066" = 3\n', {("a.b",): 1, ("c d", "e"): 2, ("f",): 3}),
    "empty key": ('"" = 1\n', {("",): 1}),
    "tables": (
        "[[a]]\nb = 1\n[[a]]\nb = 2\n",
        {("a",): 1, ("a", 0): 1, ("a", 0, "b"): 2, ("a", 1): 3, ("a", 1, "b"): 4},
    ),
    "tables in tables": (
        "[[a]]\n[[a.b]]\nc = 1\n[[a.b]]\nc = 2\n[[a]]\n[[a.b]]\nc = 3\n",
        {("a", 0, "b", 0, "c"): 3, ("a", 0, "b", 1, "c"): 5, ("a", 1): 6, ("a", 1, "b"): 7, ("a", 1, "b", 0, "c"): 8},
    ),
    "table of the last of the tables": (
        "[[a]]\n[a.b]\nc = 1\n[[a]]\n[a.b]\nc = 2\n[a.b.d]\ne = 3\n",
        {("a", 0, "b"): 2, ("a", 0, "b", "c"): 3, ("a", 1, "b", "c"): 6, ("a", 1, "b", "d", "e"): 8},
    ),
    "tables below a table": ("[a]\nx = 1\n[[a.b]]\nc = 1\n", {("a", "x"): 2, ("a", "b", 0): 3, ("a", "b", 0, "c"): 4}),
    "list": ("a = [1, 2]\n", {("a",): 1, ("a", 0): 1, ("a", 1): 1}),
    "list over lines": (
        "a = [ # one\n  1,\n\n  # no\n  2, 3\n  ,\n  4,\n]\nb = 1\n",
        {("a", 0): 2, ("a", 1): 5, ("a", 2): 5, ("a", 3): 7, ("b",): 9},
    ),
    "lists in lists": ("a = [\n [1,\n  2],\n [3]]\n", {("a", 0): 2, ("a", 0, 1): 3, ("a", 1): 4, ("a", 1, 0): 4}),
    "empty list": ("a = []\nb = [ ]\nc = [\n]\nd = 1\n", {("a",): 1, ("b",): 2, ("c",): 3, ("d",): 5}),
    "inline table": ("\na = { b = 1, c.d = 2 }\n", {("a", "b"): 2, ("a", "c", "d"): 2}),
    "empty inline table": ("a = {}\nb = { }\nc = 1\n", {("a",): 1, ("b",): 2, ("c",): 3}),
    "inline tables in a list": (
        "a = [\n  { b = 1 },\n  { b = [2,\n  3] },\n]\nc = 1\n",
        {("a", 0, "b"): 2, ("a", 1): 3, ("a", 1, "b", 1): 4, ("c",): 6},
    ),
    "text that looks like more": (
        'a = "x # \\" ] } [b]"\nb = \'# " \\\'\nc = 1\n',
        {("a",): 1, ("b",): 2, ("c",): 3},
    ),
    "text over lines": ('a = """\nb = 1\n[c]\n"""\nb = 2\n', {("a",): 1, ("b",): 5}),
    "literal text over lines": ("a = '''\nb = 1\n\"\"\"'''\nb = 2\n", {("a",): 1, ("b",): 4}),
    "text that ends in quotes": ('a = """x"""""\nb = """"x"""\nc = """"""\nd = 1\n', {("b",): 2, ("c",): 3, ("d",): 4}),
    "literal text that ends in quotes": (
        "a = '''x'''''\nb = ''\nc = ''''''\nd = 1\n",
        {("b",): 2, ("c",): 3, ("d",): 4},
    ),
    "escapes over lines": ('a = """\\\n   x \\""" \\\\"""\nb = 1\n', {("b",): 3}),
    "escaped end": ('a = "x\\\\"\nb = 1\n', {("b",): 2}),
    "dates": ("a = 1979-05-27 07:32:00\nb = 07:32:00.5\nc = 1979-05-27T00:32:00-07:00\n", {("b",): 2, ("c",): 3}),
    "numbers": ("a = +1_000.5e-3\nb = 0xff\nc = -inf\nd = nan # x\n", {("b",): 2, ("c",): 3, ("d",): 4}),
    "carriage returns": ("a = 1\r\n[b]\r\nc = [\r\n1,\r\n2]\r\n", {("a",): 1, ("b",): 2, ("b", "c", 1): 5}),
    "tabs": ("\t[a]\t# x\n\tb\t=\t1\t# y\n", {("a",): 1, ("a", "b"): 2}),
    "out of order": ("[a.b]\nx = 1\n[a]\ny = 2\n", {("a", "b", "x"): 2, ("a",): 3, ("a", "y"): 4}),
    "not ascii": ('"日本" = "é"\nb = 1\n', {("日本",): 1, ("b",): 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_lines(case: str) -> None:
    text, expected = CASES[case]
    found = locate(text)
    assert {path: found.get(path) for path in expected} == expected
    if not expected:
        assert found == {}


TEXTS = {name: text for name, (text, _) in CASES.items()} | {
    "experiment": document(tail="\n".join([group(batch_size="3"), adversary(), adversary(id='"b"')]))
}


@pytest.mark.parametrize("case", TEXTS)
def test_every_key_that_tomllib_finds_has_a_line_and_no_other(case: str) -> None:
    text = TEXTS[case]
    lines = locate(text)
    there = paths(tomllib.loads(text))
    assert set(lines) == there
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


@pytest.mark.parametrize("case", TEXTS)
def test_lines_move_with_what_stands_above(case: str) -> None:
    text = TEXTS[case]
    above = "# one\n\n'two three' = [\n'''\n'''\n]\n"
    moved = locate(above + text)
    assert {path: line + 6 for path, line in locate(text).items()}.items() <= moved.items()


def test_a_long_file_takes_no_longer_than_it_must() -> None:
    start = time.process_time()
    lines = locate("a = [\n" + "1,\n" * 30_000 + "]\n")
    assert lines["a", 29_999] == 30_001
    # To count all lines anew for each item took 30 times as long.
    lines = locate("a = [\n" + "100000,\n" * 100_000 + "]\n")
    assert lines["a", 99_999] == 100_001
    assert time.process_time() - start < 4


def paths(value: Any, here: Path = ()) -> set[Path]:
    """Every path in a parsed file."""
    inner = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return {(*here, key) for key, _ in inner} | {path for key, item in inner for path in paths(item, (*here, key))}
