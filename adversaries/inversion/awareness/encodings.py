"""Encodings of the images: what is sought is the encoded batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedsim.adversaries.inversion.awareness.base import Matched, Place


def mixup(matched: Matched, settings: Mapping[str, Any], place: Place) -> Matched:
    """A mixture of images is an image."""
    return matched.saying("a mixture of images is within the same box as they are: nothing is changed")


def instahide(matched: Matched, settings: Mapping[str, Any], place: Place) -> Matched:
    """Normalised pixels have random signs: |x| is what varies as pictures do, and -x is as valid as x (Huang et al.
    2021, section 4).
    """
    text = "seeks pixels of either sign, and total variation is of their absolute values"
    return replace(matched, tv_absolute=True, symmetric=True).saying(text)
