"""How labels fall in random batches, and `[labels]`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from made import TEXT

from fedsim.errors import InputError
from fedsim.sweeps import labels
from fedsim.sweeps.cells import expand
from fedsim.sweeps.file import parse
from fedsim.sweeps.words import Labels

SHOWN = TEXT.replace('"plane"]', '"labels"]')


def count(values: Any, batch: int, draws: int = 4000) -> dict[str, float]:
    return labels.count(np.asarray(values), batch, draws, np.random.default_rng(0))


def test_a_batch_of_one_has_one_label() -> None:
    assert count([0, 1, 2], 1, 10) == {"distinct_share": 1.0, "commonest_mean": 1.0}


def test_more_images_than_classes_cannot_all_differ() -> None:
    found = count(np.arange(300) % 3, 4)
    assert found["distinct_share"] == 0.0
    assert found["commonest_mean"] >= 2


@pytest.mark.parametrize("batch", [2, 4, 8])
def test_the_share_is_that_of_drawing_without_replacement(batch: int) -> None:
    each = 20
    exact = math.comb(10, batch) * each**batch / math.comb(10 * each, batch)
    assert count(np.arange(10 * each) % 10, batch)["distinct_share"] == pytest.approx(exact, abs=0.025)


def test_the_commonest_of_two_is_two_or_one() -> None:
    found = count(np.arange(40) % 2, 2)
    same = 19 / 39
    assert found["commonest_mean"] == pytest.approx(1 + same, abs=0.03)
    assert found["commonest_mean"] == pytest.approx(2 - found["distinct_share"])


def test_the_whole_set_has_its_own_counts() -> None:
    assert count([0, 0, 0, 1, 2], 5, 3) == {"distinct_share": 0.0, "commonest_mean": 3.0}


def test_rows_are_of_the_cells_data_and_the_same_again() -> None:
    grid = expand(parse(f"{SHOWN}\n[labels]\nbatches = [1, 16]\ndraws = 20\n", "s.toml", "s"))
    assert grid.sweep.labels == Labels((1, 16), 20)
    experiments = [cell.experiment for cell in grid.cells]
    rows = labels.lines(grid.sweep.labels, experiments)
    assert [(row["label"], row["batch"], row["draws"]) for row in rows] == [("digits", 1, 20), ("digits", 16, 20)]
    assert rows[0]["commonest_mean"] == 1
    assert rows[1]["commonest_mean"] > 2
    assert rows == labels.lines(grid.sweep.labels, experiments)


def test_a_batch_beyond_the_data_is_a_mistake() -> None:
    grid = expand(parse(SHOWN, "s.toml", "s"), None, ["labels.batches=[1000000]"])
    assert grid.sweep.labels is not None
    with pytest.raises(InputError, match=r"labels.batches: 1000000 is more than the \d+ training images of digits"):
        labels.lines(grid.sweep.labels, [grid.cells[0].experiment])


def test_mistakes_are_told_with_their_line() -> None:
    with pytest.raises(InputError) as caught:
        parse(f"{SHOWN}\n[labels]\nbatches = [0]\ndraw = 3\n", "s.toml", "s")
    last = SHOWN.count("\n") + 1
    assert list(caught.value.problems) == [
        f"s.toml:{last + 2}: labels.batches[0]: must be at least 1, not 0",
        f"s.toml:{last + 3}: labels.draw: unknown key; did you mean 'draws'?",
    ]
    with pytest.raises(InputError, match=r"experiment: missing; the part 'labels' of the page"):
        parse('[sweep]\nshow = ["labels"]\n', "s.toml", "s")
