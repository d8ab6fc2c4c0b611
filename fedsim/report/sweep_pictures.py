"""Small pictures of a cell's reconstructions: a few images, truth above, guess below, small enough for a page of many.

They are cut out of the PNGs that a run stores (see `fedsim.report.pictures`), whose gaps are transparent and whose
images are enlarged by whole factors.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PNG = b"\x89PNG\r\n\x1a\n"
LARGEST_FILE = 16 * 2**20
LARGEST_SIDE = 64
"""Pixels; a larger image is scaled down to this."""
BUDGET = 5 * 2**20
"""Bytes of embedded pictures on one page. What comes after is named and not shown."""

Image = NDArray[np.uint8]
Pair = tuple[Image, Image]


class Album:
    """The pictures of one page, as data URIs, within a budget of bytes. `left_out` counts what it did not allow."""

    def __init__(self, folder: Path, budget: int = BUDGET) -> None:
        self._folder, self._left = folder, budget
        self.left_out = 0

    def strip(self, pictures: Sequence[str], most: int) -> tuple[str, int, str]:
        """The first `most` images of these files of the folder, side by side.

        Returns: a data URI, how many images it shows, and (where there is none) why.
        """
        if not pictures:
            return "", 0, "no picture was stored"
        pairs: list[Pair] = []
        problem = ""
        for name in pictures:
            if len(pairs) >= most:
                break
            found, problem_here = self._pairs(name, most - len(pairs))
            pairs += [pair for pair in found if not pairs or pair[0].shape == pairs[0][0].shape]
            problem = problem or problem_here
        if not pairs:
            return "", 0, problem
        content = _png(pairs)
        if len(content) * 4 / 3 > self._left:
            self.left_out += 1
            return "", 0, "left out, for the page would grow too large"
        self._left -= len(content) * 4 // 3
        return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}", len(pairs), ""

    def _pairs(self, name: str, most: int) -> tuple[list[Pair], str]:
        """The first images of one file, or why there are none."""
        from PIL import Image as pillow

        try:
            path = (self._folder / name).resolve()
            # The folder may come from elsewhere: a page must not carry away what lies outside it.
            if not path.is_relative_to(self._folder.resolve()):
                return [], f"{name} lies outside the sweep's folder and is not shown"
            if path.stat().st_size > LARGEST_FILE:
                return [], f"{name} is too large to be put into a page"
            content = path.read_bytes()
        except (OSError, ValueError):
            return [], f"{name} is missing or cannot be read"
        if not content.startswith(PNG):
            return [], f"{name} is not a PNG"
        try:
            with pillow.open(io.BytesIO(content), formats=["PNG"]) as picture:
                pixels = np.asarray(picture.convert("RGBA"))
        except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError):
            return [], f"{name} is damaged"
        return cut_out(pixels, most), f"{name} holds no pairs of images"


def cut_out(pixels: Image, most: int) -> list[Pair]:
    """The first pairs of a picture of comparisons, each image (H, W, 3) at its own size again.

    Of several blocks only the first is looked at. pixels: (H, W, 4), transparent between the images. An image without
    its counterpart is left out. None are found in a picture that is laid out otherwise.
    """
    seen = pixels[..., 3] > 0
    bands = _runs(np.any(seen, axis=1))[:2]
    if len(bands) < 2 or bands[0][1] - bands[0][0] != bands[1][1] - bands[1][0]:
        return []
    (top, middle), (lower, bottom) = bands
    both = np.all(seen[top:middle], axis=0) & np.all(seen[lower:bottom], axis=0)
    rows = [[pixels[start:end, left:right, :3] for left, right in _runs(both)[:most]] for start, end in bands]
    # A flat image would pass for one pixel enlarged; what all share is the factor of the picture.
    factor = math.gcd(*(_factor(image) for row in rows for image in row)) or 1
    small = [[_small(image[::factor, ::factor]) for image in row] for row in rows]
    return list(zip(*small, strict=True))


def _runs(present: Any) -> list[tuple[int, int]]:
    """Where runs of true begin and end."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], present.astype(np.int8), [0]))))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _factor(image: Image) -> int:
    """By which whole factor an image was enlarged, pixel by pixel."""
    height, width = image.shape[:2]
    for factor in range(min(height, width) // 2, 1, -1):
        if height % factor or width % factor:
            continue
        if (image[::factor, ::factor].repeat(factor, axis=0).repeat(factor, axis=1) == image).all():
            return factor
    return 1


def _small(image: Image) -> Image:
    from PIL import Image as pillow

    height, width = image.shape[:2]
    share = LARGEST_SIDE / max(height, width)
    if share >= 1:
        return image
    size = max(1, round(width * share)), max(1, round(height * share))
    return np.asarray(pillow.fromarray(np.ascontiguousarray(image)).resize(size, pillow.Resampling.BOX))


def _png(pairs: Sequence[Pair]) -> bytes:
    """The pairs side by side with a transparent gap of a pixel, truth above."""
    from PIL import Image as pillow

    height, width = pairs[0][0].shape[:2]
    canvas = np.zeros((2 * height + 1, len(pairs) * (width + 1) - 1, 4), dtype=np.uint8)
    for index, pair in enumerate(pairs):
        for row, image in enumerate(pair):
            spot = canvas[row * (height + 1) :, index * (width + 1) :][:height, :width]
            spot[..., :3], spot[..., 3] = image, 255
    content = io.BytesIO()
    pillow.fromarray(canvas).save(content, format="PNG", optimize=True)
    return content.getvalue()
