"""Values that an experiment file might hold: what fits an annotation, what nearly does, and what fits none.

No test is in here.
"""

from __future__ import annotations

import datetime
import random
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 100, 10_000, 1_000_000, 2**31, 2**63 - 1, 2**63, -(2**63), 2**64, 10**19, 10**40, -(10**100)),
    *(0.0, -0.0, 1.0, 0.5, -0.5, 2.5, 1e-9, 1e-300, 5e-324, 1e15, 1e38, 3.5e38, 1e308, 1e16, 1.0000000000000002),
    *(float("nan"), float("inf"), float("-inf")),
)
TEXTS = (
    *("", " ", "\t", "\n", "\0", "a\nb", "a\rb", "\u2028", "..", ".", "/", "~", "~nobody", "a/b", "../../x", "C:\\x"),
    *("x" * 81, "x" * 300, "x" * 20_000, "Zürich", "naïve", "日本語", "🙂" * 5, "é", "ﬁ", "\u202egeiping", "\ufeffoff"),
    *(
        "\u0660",
        "²",
        "Ⅷ",
        "gei\u200bping",
        "ｇｅｉｐｉｎｇ",
        "\x1b[31mred",
        "\x7f",
        "\U0010ffff",
        "\ue000",
        "ⅰid",
        "İ",
        "ß",
    ),
    *(
        "all",
        "off",
        "none",
        "null",
        "None",
        "nan",
        "true",
        "1",
        "-1",
        "1e5",
        "0x10",
        "inf",
        "auto",
        "local",
        "ray",
        "on",
    ),
    *("os:system", "fedsim.models:MLP", ":", "::", "a:b:c", "torchvision:", ":resnet18", "cuda:", "cuda:99", "mlp:16"),
    *("ray://", "ray://x", "ray://x:99999", "host:0", "1.2.3.4:6379", "[::1]:6379", "localhost", "http://x:1", "a b:1"),
    *(
        "%s%n",
        "{}",
        "{0}",
        "${HOME}",
        "$(id)",
        "'; drop",
        '"',
        "'",
        "\\",
        "#",
        "[x]",
        "=",
        "x = 1",
        "<b>&amp;",
        "None}",
    ),
)
TIMES: tuple[Any, ...] = (
    datetime.date(1979, 5, 27),
    datetime.time(7, 32),
    datetime.datetime(1979, 5, 27, 7, 32),
    datetime.datetime(1979, 5, 27, 7, 32, tzinfo=datetime.UTC),
)
KEYS = (
    *("", " ", ".", "a.b", "0", "-1", "\n", "\0", "x" * 5000, "é", "日本", "🙂", "__class__", "self", "name ", " name"),
    *("Name", "NAME", "nаme", "settings", "plugin", "dataset", "tablé", "id\u200b", '"', "'", "[", "=", "#", "\x1b[2J"),
)
"""Names of keys that nobody means. The third "name" has a Cyrillic letter in it."""


def strange(rng: random.Random, depth: int = 0) -> Any:
    """Anything that TOML can say."""
    way = rng.random()
    if way < 0.3:
        return rng.choice(NUMBERS)
    if way < 0.55:
        return rng.choice(TEXTS)
    if way < 0.65:
        return rng.random() < 0.5
    if way < 0.72:
        return rng.choice(TIMES)
    if depth > 2:
        return rng.choice(([], {}))
    if way < 0.87:
        return [strange(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice((*KEYS, "name", "kind", "id")): strange(rng, depth + 1) for _ in range(rng.randrange(4))}


def nested(rng: random.Random) -> Any:
    """Lists and tables in one another, up to where a reader must give up."""
    out: Any = rng.choice(NUMBERS)
    for _ in range(rng.choice((3, 10, 60, 150))):
        out = [out] if rng.random() < 0.5 else {rng.choice(("name", "a", "kind")): out}
    return out


def huge(rng: random.Random) -> list[Any]:
    """A list far longer than anything that is meant."""
    count = rng.choice((300, 3000, 20_000))
    return rng.choice(
        (
            list(range(count)),
            [0] * count,
            [-1] * count,
            ["labels"] * count,
            [0.5] * (count // 10),
            [{"name": "gradient_noise"}] * (count // 300),
            [[]] * count,
        )
    )


def fitting(annotation: Any, rng: random.Random) -> Any:
    """A value of the kind that an annotation asks for, mostly within its limits."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _limited(arguments, rng)
    if origin in (Union, types.UnionType):
        return fitting(rng.choice([one for one in arguments if one is not type(None)]), rng)
    if origin is Literal:
        return rng.choice(arguments)
    if origin in (tuple, list, frozenset):
        return [fitting(arguments[0], rng) for _ in range(rng.choice((0, 1, 1, 2, 3, 6)))] if arguments else []
    return _plain(annotation, rng)


def _plain(annotation: Any, rng: random.Random) -> Any:
    if annotation is bool:
        return rng.random() < 0.5
    if annotation is int:
        return rng.choice((0, 1, 1, 2, 3, 4, 5, 8, 10, 33, 100, 5000, 200_000, 10**6, 10**9, 2**62, 10**30))
    if annotation is float:
        return rng.choice((0, 1, 0.0, 1e-300, 1e-6, 0.1, 0.25, 0.5, 0.9, 0.999999999, 1.0, 1.5, 10.0, 1e6, 1e300))
    return rng.choice(("x", "cpu", "auto", "local", "127.0.0.1:6379", "sgd", "nowhere.npz", "a name", "resnet18"))


def _limited(arguments: tuple[Any, ...], rng: random.Random) -> Any:
    """On a limit, next to one, or anywhere."""
    limits = [
        getattr(one, key)
        for field in arguments[1:]
        for one in (field, *getattr(field, "metadata", ()))
        for key in ("ge", "gt", "le", "lt")
        if getattr(one, key, None) is not None
    ]
    value = fitting(arguments[0], rng)
    if limits and rng.random() < 0.4:
        step = 1 if arguments[0] is int else rng.choice((1, 0.001, 1e-12))
        return rng.choice(limits) + rng.choice((-1, 0, 0, 1)) * step
    return value


def misspelt(word: str, rng: random.Random) -> str:
    """The word with a letter too few, too many, changed, exchanged with its neighbour or in the other case."""
    if not word:
        return rng.choice("abcxyz_-")
    at = rng.randrange(len(word))
    letter = rng.choice("abcdefghijklmnopqrstuvwxyz_-0 ")
    return rng.choice(
        (
            word[:at] + word[at + 1 :],
            word[:at] + letter + word[at:],
            word[:at] + letter + word[at + 1 :],
            word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
            word.upper() if rng.random() < 0.5 else word.title(),
            word.replace("_", "-") if "_" in word else word + "s",
        )
    )
