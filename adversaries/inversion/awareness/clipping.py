"""Clipping: a differentiable function, so that the guess's gradient is clipped as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fedsim.adversaries.inversion import maps
from fedsim.adversaries.inversion.awareness.base import SCALE_FREE, Matched, Place


def gradient_clipping(matched: Matched, settings: Mapping[str, Any], place: Place) -> Matched:
    """The guess's gradient is clipped in the same way. One factor for all entries makes no difference to an angle, so
    that global clipping needs nothing with these objectives, unless noise or the like came after it.
    """
    whole = settings.get("scope", "global") == "global"
    if whole and matched.objective in SCALE_FREE and place.final:
        return matched.saying("one factor for all entries makes no difference to the angle, so nothing is to be done")
    first = matched.target[0]
    bound = torch.tensor(float(settings["max_norm"]) / place.unit, dtype=first.dtype, device=first.device)
    one: maps.Map = maps.clipped if whole else maps.clipped_each
    return matched.mapping(one, [bound]).saying("clips the guess's gradient in the same way")
