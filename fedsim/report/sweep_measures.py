"""What a sweep measures: how each value is called and written, and which direction means more leaked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fedsim.report.formats import MISSING, fixed, significant, whole


@dataclass(frozen=True)
class Measure:
    """How a value is called and written. sign: 1 where more means more leaked, -1 where less does, 0 for neither."""

    label: str
    write: Callable[[float | None], str]
    sign: int = 0

    def signed(self, difference: float | None) -> str:
        """A difference, with its sign."""
        written = self.write(difference)
        if difference is None or not math.isfinite(difference) or written.startswith("-"):
            return written
        return f"+{written}"


def _hundredths(value: float | None) -> str:
    return fixed(value, 2)


def _percent(value: float | None) -> str:
    return MISSING if value is None else fixed(100 * value, 1)


MEASURES = {
    "lpips": Measure("LPIPS", _hundredths, -1),
    "lpips_paper": Measure("LPIPS as published", _hundredths, -1),
    "ssim": Measure("SSIM", _hundredths, 1),
    "psnr": Measure("PSNR dB", lambda value: fixed(value, 1), 1),
    "label_accuracy": Measure("labels inferred %", _percent, 1),
    "test_accuracy": Measure("test accuracy %", _percent),
    "time_ratio": Measure("relative time", _hundredths),
    "cpu_seconds": Measure("training, CPU s", lambda value: fixed(value, 1)),
    "rounds": Measure("rounds of training", whole),
    "seconds": Measure("seconds", lambda value: fixed(value, 1)),
}


def measure(value: str) -> Measure:
    """How a value is called and written. An unknown one is written plainly."""
    return MEASURES.get(value) or Measure(value.replace("_", " "), significant)
