"""The text of an experiment file, spoiled: cut off, letters lost or added, lines twice. No test is in here."""

from __future__ import annotations

import random
from collections.abc import Callable

SIGNS = (
    *('"', "'", "[", "]", "{", "}", "=", ".", ",", "#", "\\", "\n", "\r", "\t", " ", "-", "_", ":", "0", "e", "x", "+"),
    *(
        "\0",
        "\x01",
        "\x7f",
        "\x1b",
        "\u200b",
        "\ufeff",
        "\u2028",
        "é",
        "🙂",
        '"""',
        "'''",
        "[[",
        "]]",
        "0x",
        "1979-05-27",
    ),
)

Spoil = Callable[[str, random.Random], str]


def cut_off(text: str, rng: random.Random) -> str:
    return text[: rng.randrange(len(text) + 1)]


def sign_lost(text: str, rng: random.Random) -> str:
    at = rng.randrange(max(len(text), 1))
    return text[:at] + text[at + rng.choice((1, 1, 1, 2, 10)) :]


def sign_added(text: str, rng: random.Random) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(SIGNS) * rng.choice((1, 1, 1, 2, 50)) + text[at:]


def sign_changed(text: str, rng: random.Random) -> str:
    at = rng.randrange(max(len(text), 1))
    return text[:at] + rng.choice(SIGNS) + text[at + 1 :]


def line_twice(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    lines.insert(rng.choice((at, rng.randrange(len(lines) + 1))), lines[at])
    return "\n".join(lines)


def line_lost(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    del lines[rng.randrange(len(lines))]
    return "\n".join(lines)


def lines_swapped(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return "\n".join(lines)


def lines_joined(text: str, rng: random.Random) -> str:
    breaks = [place for place, sign in enumerate(text) if sign == "\n"]
    at = rng.choice(breaks) if breaks else 0
    return text[:at] + rng.choice(("", " ", ",", ", ")) + text[at + 1 :]


def header_changed(text: str, rng: random.Random) -> str:
    """One of the lines in brackets with more or fewer of them, or with another's words."""
    lines = text.split("\n")
    headers = [place for place, line in enumerate(lines) if line.startswith("[")]
    if headers:
        at, words = rng.choice(headers), lines[rng.choice(headers)].strip("[]")
        lines[at] = rng.choice((f"[{words}]", f"[[{words}]]", f"[{words}", f"{words}]", f"[{words}.x]", f"[x.{words}]"))
    return "\n".join(lines)


def twice_over(text: str, rng: random.Random) -> str:
    return text + text


def other_line_ends(text: str, rng: random.Random) -> str:
    return text.replace("\n", rng.choice(("\r\n", "\r", "\n\r", "\r\r\n", "\u2028", "")))


def brackets(text: str, rng: random.Random) -> str:
    """So many that no reader can go into all of them."""
    count = rng.choice((50, 400, 3000))
    sign = rng.choice(("[", "{a=", "[[", "(", "a."))
    return f"{text}\n[deep]\nx = {sign * count}"


WAYS: dict[str, Spoil] = {
    "text cut off": cut_off,
    "sign lost": sign_lost,
    "sign added": sign_added,
    "sign changed": sign_changed,
    "line twice": line_twice,
    "line lost": line_lost,
    "lines swapped": lines_swapped,
    "lines joined": lines_joined,
    "header changed": header_changed,
    "text twice": twice_over,
    "other line ends": other_line_ends,
    "brackets": brackets,
}


def text(whole: str, rng: random.Random) -> tuple[tuple[str, ...], bytes]:
    """A text spoiled in one to three ways, and in which."""
    kinds = tuple(rng.choices([*WAYS], k=rng.choice((1, 1, 1, 2, 3))))
    for kind in kinds:
        whole = WAYS[kind](whole, rng)
    raw = whole.encode()
    if rng.random() < 0.1 and raw:
        changed = bytearray(raw)
        for _ in range(rng.choice((1, 1, 5, 100))):
            changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        return (*kinds, "bits flipped"), bytes(changed)
    return kinds, raw
