"""Public images, to mix private ones with: the training images of any data set, by name."""

from __future__ import annotations

import functools
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING

from fedsim import plugins
from fedsim.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.data.dataset import Images
    from fedsim.data.federation import DataSet


def data_set(public: str) -> DataSet:
    """The component that `NAME` or, for one that reads the user's files, `NAME:PATH` stands for, as `name` in an
    experiment's [data]; checked, not loaded.

    Raises InputError for an unknown name, a path that is missing or out of place, or files that are not there.
    """
    name, _, path = public.partition(":")
    cls = plugins.load("datasets", name)
    takes_path = next((field.default is MISSING for field in fields(cls)), False)
    if bool(path) != takes_path:
        wanted = f"reads files; say which, as in '{name}:PATH'" if takes_path else "takes no path; name it alone"
        raise InputError(f"data set '{name}' {wanted}")
    try:
        settings: DataSet = cls(path) if takes_path else cls()
    except TypeError as error:
        raise InputError(f"data set '{name}' cannot be made from its name and one path alone: {error}") from error
    if hasattr(settings, "check"):
        settings.check()
    return settings


@functools.cache
def public_images(public: str) -> Images:
    """The training images of `data_set(public)`, loaded once in a process. Raises what loading raises."""
    from fedsim.data.federation import load_data  # imports torch

    return load_data(data_set(public)).train


def take(owner: str, public: str, positions: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The public images at these positions, float32 (len(positions), C, H, W) in [0, 1]. Grey ones are repeated over
    the channels where the private images have colour.

    shape: of a private image. Raises InputError if the public ones have another; nothing is resized or cut.
    """
    images = public_images(public)
    channels, *size = images.pixels.shape[1:]
    if size != list(shape[1:]) or channels not in (1, shape[0]):
        theirs, ours = ("x".join(map(str, each)) for each in ((channels, *size), shape))
        raise InputError(
            f"{owner}: public: the images of '{public}' are {theirs}, the private ones {ours}; "
            "they must be of one size, so bring them to it yourself and give them as npz:PATH"
        )
    return images.batch(positions).images.expand(-1, shape[0], -1, -1)
