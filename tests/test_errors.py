"""Errors for people: their exit codes, their lines, and the nearest word."""

from __future__ import annotations

import pytest

from fedsim.errors import LONGEST, DataUnavailable, FedsimError, InputError, ProtocolError, legible, suggestion

MODELS = ("convnet6", "lenet", "mlp", "preact_resnet18", "resnet18", "torchvision")


@pytest.mark.parametrize(
    ("error", "code"),
    [(FedsimError("x"), 1), (InputError("x"), 2), (DataUnavailable("x"), 1), (ProtocolError("x"), 1)],
)
def test_exit_codes(error: FedsimError, code: int) -> None:
    assert error.exit_code == code
    assert str(error) == "x"
    assert isinstance(error, FedsimError)


def test_an_input_error_holds_a_line_for_each_problem() -> None:
    error = InputError("a:1: b: c", "a:2: d: e")
    assert error.problems == ("a:1: b: c", "a:2: d: e")
    assert str(error) == "a:1: b: c\na:2: d: e"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("a: b é 日本", "a: b é 日本"),
        ("a\nb\tc\0", "a\\nb\\tc\\x00"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202egeiping\u200b", "\\u202egeiping\\u200b"),
        ("\ud800", "\\ud800"),
    ],
)
def test_a_line_shows_all_that_is_in_it(line: str, shown: str) -> None:
    assert legible(line) == shown
    assert InputError(line).problems == (shown,)


@pytest.mark.parametrize("sign", ["x", "\n", "\U0010ffff"])
def test_of_a_long_line_the_place_and_the_remedy_stay(sign: str) -> None:
    (line,) = InputError(f"file:3: key: {sign * 100_000}; did you mean 'y'?").problems
    assert len(line) <= LONGEST
    assert line.startswith("file:3: key: ") and line.endswith("; did you mean 'y'?") and " ... " in line


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("resnet_18", "resnet18"),
        ("resnet", "resnet18"),
        ("convnet", "convnet6"),
        ("preact_resnet", "preact_resnet18"),
        ("lenet5", "lenet"),
        ("mpl", "mlp"),
        ("torch_vision", "torchvision"),
        # Capitals are the most common way to write a name wrongly.
        ("LeNet", "lenet"),
        ("MLP", "mlp"),
        ("ResNet18", "resnet18"),
        ("ConvNet6", "convnet6"),
    ],
)
def test_the_nearest_word_is_suggested(word: str, meant: str) -> None:
    assert suggestion(word, MODELS) == f"; did you mean '{meant}'?"


def test_capitals_do_not_lead_to_another_word() -> None:
    assert suggestion("Relu", ("elu", "gelu", "leaky_relu", "relu")) == "; did you mean 'relu'?"


def test_without_a_near_word_all_are_listed_in_order() -> None:
    assert suggestion("zzz", ["b", "a"]) == "; known: a, b"


def test_where_nothing_is_known_nothing_is_suggested() -> None:
    assert suggestion("zzz", []) == ""


def test_the_known_words_may_come_from_a_generator() -> None:
    assert suggestion("zzz", (word for word in "ab")) == "; known: a, b"
