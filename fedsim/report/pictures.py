"""Pictures of a reconstruction: the truth above, the guess below, one column an image."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.runs import write_whole

COLUMNS = 16
"""Images side by side before the picture wraps."""
READABLE = 84
"""Pixels that a small image is enlarged to, about: three times for 28-pixel digits."""
MOST_PIXELS = 2**26
"""A picture with more of them is not cut in two."""
GAP, BLOCK_GAP = 3, 12
"""Pixels between neighbours, and between one pair of rows and the next."""


@dataclass(frozen=True)
class Layout:
    """Where the images of a comparison lie. `cell` is the enlarged size of one image, height first."""

    columns: int
    blocks: int
    cell: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        height, width = self.cell
        block = 2 * height + GAP
        return (
            self.blocks * block + (self.blocks - 1) * BLOCK_GAP,
            self.columns * width + (self.columns - 1) * GAP,
        )

    def corner(self, index: int, row: int) -> tuple[int, int]:
        """Top and left of image `index`; row 0 is the truth, row 1 the guess."""
        block, column = divmod(index, self.columns)
        height, width = self.cell
        return block * (2 * height + GAP + BLOCK_GAP) + row * (height + GAP), column * (width + GAP)


def layout(count: int, height: int, width: int, scale: int | None = None) -> Layout:
    """How `count` images of height x width are laid out; `scale` is a whole factor, chosen to be readable if None."""
    factor = scale if scale is not None else max(1, round(READABLE / max(height, width)))
    columns = min(max(count, 1), COLUMNS)
    return Layout(columns, max(1, -(-count // COLUMNS)), (height * factor, width * factor))


def comparison(truth: Any, guess: Any, path: Path, *, scale: int | None = None) -> None:
    """Write a PNG that shows `truth` above `guess`, image by image, in rows of 16.

    Args:
        truth: (N, C, H, W), one channel or three; uint8, or floating point in [0, 1] (clipped to it).
        guess: the same for the reconstructions. N may differ: what has no counterpart stands above, or below, nothing.
            A value that is not finite is shown as mid-grey.
        path: of the PNG. It is written whole or not at all; missing folders are made.
        scale: how many pixels wide one pixel becomes, without smoothing. By default, what makes small images readable.

    Raises:
        ValueError: the arrays are not images of one common size, or `scale` is below 1.
    """
    from PIL import Image

    rows = [_pixels(truth, "truth"), _pixels(guess, "guess")]
    if rows[0].shape[1:] != rows[1].shape[1:]:
        raise ValueError(f"truth and guess differ in size: {rows[0].shape[1:]} and {rows[1].shape[1:]}")
    if scale is not None and scale < 1:
        raise ValueError(f"scale is {scale}; it must be 1 or more")
    height, width, channels = rows[0].shape[1:]
    plan = layout(max(len(row) for row in rows), height, width, scale)
    factor = plan.cell[0] // height
    # Gaps are transparent, so that the picture sits on a light page as well as on a dark one. They are grey for
    # viewers that know no transparency.
    canvas = np.full((*plan.size, channels + 1), 128, dtype=np.uint8)
    canvas[..., -1] = 0
    for row, images in enumerate(rows):
        for index, image in enumerate(images):
            top, left = plan.corner(index, row)
            spot = canvas[top : top + plan.cell[0], left : left + plan.cell[1]]
            spot[..., :-1] = image.repeat(factor, axis=0).repeat(factor, axis=1)
            spot[..., -1] = 255
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    Image.fromarray(canvas).save(content, format="PNG", optimize=True)
    write_whole(path, content.getvalue())


def parted(content: bytes, plan: Layout, blocks: int) -> list[bytes]:
    """A comparison cut in two: its first `blocks` pairs of rows, and the others; uncut where it is no such picture.

    content: a PNG of the layout's proportions, at any scale.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                return [content]
            unit = height / plan.size[0]
            block = (2 * plan.cell[0] + GAP) * unit
            end, start = block * blocks + BLOCK_GAP * unit * (blocks - 1), (block + BLOCK_GAP * unit) * blocks
            parts = []
            for top, bottom in ((0, round(end)), (round(start), height)):
                part = io.BytesIO()
                image.crop((0, top, width, bottom)).save(part, format="PNG", optimize=True)
                parts.append(part.getvalue())
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return [content]  # whoever opens the page may make more of it
    return parts


def _pixels(images: Any, what: str) -> NDArray[np.uint8]:
    """Any image array as uint8 (N, H, W, C)."""
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in array.shape[2:]:
        raise ValueError(f"{what} must be (N, C, H, W) with one channel or three; it is {array.shape}")
    if array.dtype != np.uint8:
        array = np.nan_to_num(array.astype(np.float64), nan=0.5, posinf=1.0, neginf=0.0)
        array = np.rint(array.clip(0.0, 1.0) * 255).astype(np.uint8)
    return array.transpose(0, 2, 3, 1)
