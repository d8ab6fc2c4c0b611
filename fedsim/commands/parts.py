"""Parts of a sweep's page that are not made of cells: worked out once, before the cells run, and kept in the folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedsim.adversaries import assumptions
from fedsim.sweeps import costs, labels
from fedsim.sweeps.cells import Grid

Found = tuple[Sequence[Mapping[str, Any]], Sequence[str]]
"""Rows, and what must be known to read them."""


def _assumptions(grid: Grid) -> Found:
    found = assumptions.all_of_them()
    shared = set(found[0].sees).intersection(*(one.sees for one in found[1:]))
    rows = []
    for one in found:
        besides = ", ".join(item for item in one.sees if item not in shared)
        more: dict[str, Any] = {"must see": besides or None} if any(set(other.sees) - shared for other in found) else {}
        knows: dict[str, Any] = {item: _told(words) for item, words in one.knows.items()}
        reach = ", ".join(words for words, takes in one.reach.items() if takes)
        rows.append({"attack": one.name, **more, **knows, "also takes on": reach or None})
    return rows, [
        f"Every attack must see: {', '.join(sorted(shared))}.".replace("_", " "),
        "Worked out from what each attack declares to need, with its default settings and with every other choice of "
        "one setting. A column says when that must be granted, “-” never; the last one, what it takes on besides "
        "one image's gradient.",
        *(f"{one.name}: {_short(one.source)}" for one in found if one.source),
    ]


def _told(words: str) -> str | None:
    """In as few words as a column has room for."""
    if not words:
        return None
    return words.removesuffix(")").replace("default (not with ", "unless ") if words.startswith("default (") else words


def _short(source: str) -> str:
    """Authors, title, venue and year; without the section."""
    end = re.search(r"\d{4}\)", source)
    return source[: end.end()] if end else source


def _costs(grid: Grid) -> Found:
    assert grid.sweep.costs is not None
    return costs.lines(grid.sweep.costs, costs.trial(grid.sweep))


def _labels(grid: Grid) -> Found:
    assert grid.sweep.labels is not None
    rows = labels.lines(grid.sweep.labels, [cell.experiment for cell in grid.cells])
    return rows, [f"Of {grid.sweep.labels.draws:,} random batches of the training images for each size."]


PARTS: dict[str, Callable[[Grid], Found]] = {"assumptions": _assumptions, "costs": _costs, "labels": _labels}


def work_out(grid: Grid) -> dict[str, Any]:
    """For results.json: the rows of each such part that the sweep shows, and `notes`. May load data, and time steps."""
    found = {part: PARTS[part](grid) for part in grid.sweep.show if part in PARTS}
    rows: dict[str, Any] = {part: list(lines) for part, (lines, _) in found.items()}
    return {**rows, "notes": {part: list(notes) for part, (_, notes) in found.items()}}
