"""Comparison pictures, by their pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedsim.report.pictures import BLOCK_GAP, COLUMNS, GAP, comparison, layout


def flat(count: int, channels: int = 1, size: int = 4) -> NDArray[np.uint8]:
    """Image i is filled with the value i + 1 (plus 50 a channel)."""
    values = np.arange(1, count + 1, dtype=np.uint8)[:, None] + 50 * np.arange(channels, dtype=np.uint8)
    return np.broadcast_to(values[:, :, None, None], (count, channels, size, size)).copy()


def saved(truth: Any, guess: Any, path: Path, **settings: Any) -> NDArray[np.uint8]:
    comparison(truth, guess, path, **settings)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_truth_above_guess_one_column_an_image(tmp_path: Path) -> None:
    truth = flat(3)
    pixels = saved(truth, 255 - truth, tmp_path / "x" / "p.png", scale=2)
    assert pixels.shape == (8 + GAP + 8, 3 * 8 + 2 * GAP, 2)
    for index in range(3):
        left = index * (8 + GAP)
        assert (pixels[:8, left : left + 8] == [index + 1, 255]).all()
        assert (pixels[8 + GAP :, left : left + 8] == [254 - index, 255]).all()
    assert (pixels[8 : 8 + GAP, :, 1] == 0).all()
    assert (pixels[:, 8 : 8 + GAP, 1] == 0).all()


def test_every_pixel_is_enlarged_without_smoothing(tmp_path: Path) -> None:
    truth = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4) * 16
    pixels = saved(truth, truth, tmp_path / "p.png", scale=3)
    assert (pixels[:12, :12, 0] == truth[0, 0].repeat(3, 0).repeat(3, 1)).all()


@pytest.mark.parametrize(("size", "cell"), [(28, 84), (32, 96), (8, 80), (64, 64), (224, 224)])
def test_small_images_become_readable(tmp_path: Path, size: int, cell: int) -> None:
    pixels = saved(flat(1, size=size), flat(1, size=size), tmp_path / "p.png")
    assert pixels.shape[:2] == (2 * cell + GAP, cell)


def test_colours_keep_their_channels(tmp_path: Path) -> None:
    pixels = saved(flat(2, channels=3), flat(2, channels=3), tmp_path / "p.png", scale=1)
    assert pixels.shape[2] == 4
    assert pixels[0, 0].tolist() == [1, 51, 101, 255]
    assert pixels[0, 4 + GAP].tolist() == [2, 52, 102, 255]


def test_it_wraps_after_sixteen(tmp_path: Path) -> None:
    pixels = saved(flat(18), flat(18) + 100, tmp_path / "p.png", scale=1)
    block = 2 * 4 + GAP
    assert pixels.shape[:2] == (2 * block + BLOCK_GAP, COLUMNS * 4 + (COLUMNS - 1) * GAP) == layout(18, 4, 4, 1).size
    top = block + BLOCK_GAP
    assert pixels[top, 0].tolist() == [17, 255]
    assert pixels[top + 4 + GAP, 4 + GAP].tolist() == [118, 255]
    assert pixels[top, 2 * (4 + GAP), 1] == 0


@pytest.mark.parametrize(("truths", "guesses"), [(3, 1), (1, 3), (2, 0), (0, 0)])
def test_counts_may_differ(tmp_path: Path, truths: int, guesses: int) -> None:
    pixels = saved(flat(truths), flat(guesses), tmp_path / "p.png", scale=1)
    columns = max(truths, guesses, 1)
    assert pixels.shape[1] == columns * 4 + (columns - 1) * GAP
    for index in range(columns):
        left = index * (4 + GAP)
        assert (pixels[0, left, 1] == 255) == (index < truths)
        assert (pixels[-1, left, 1] == 255) == (index < guesses)


def test_floats_are_clipped_and_what_is_no_number_is_grey(tmp_path: Path) -> None:
    values = np.array([0.0, 0.5, 1.0, 2.0, -1.0, np.nan, np.inf, -np.inf], dtype=np.float32)
    images = np.broadcast_to(values[:, None, None, None], (8, 1, 4, 4))
    pixels = saved(images, images, tmp_path / "p.png", scale=1)
    assert pixels[0, :: 4 + GAP, 0].tolist() == [0, 128, 255, 255, 0, 128, 255, 0]


@pytest.mark.parametrize(
    ("truth", "guess", "settings"),
    [
        (np.zeros((1, 4, 4)), np.zeros((1, 1, 4, 4)), {}),
        (np.zeros((1, 2, 4, 4)), np.zeros((1, 2, 4, 4)), {}),
        (np.zeros((1, 1, 4, 4)), np.zeros((1, 3, 4, 4)), {}),
        (np.zeros((1, 1, 4, 4)), np.zeros((1, 1, 5, 4)), {}),
        (np.zeros((1, 1, 4, 4)), np.zeros((1, 1, 4, 4)), {"scale": 0}),
    ],
)
def test_what_are_no_images_is_refused(tmp_path: Path, truth: Any, guess: Any, settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must be|differ"):
        comparison(truth, guess, tmp_path / "p.png", **settings)
    assert list(tmp_path.iterdir()) == []
