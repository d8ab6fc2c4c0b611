"""Data sets from the user's own files: their settings, and what can be checked before anything heavy is imported.

`fedsim.data.folder` and `fedsim.data.archive` read them.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fedsim.errors import InputError, SettingError
from fedsim.settings import Count, Fraction, Positive

if TYPE_CHECKING:
    from fedsim.data.dataset import ImageData

KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class ImageFolder:
    """Image files (png, jpg, jpeg, bmp, webp) in one folder a class.

    Either `path/train/CLASS/*` and `path/test/CLASS/*`, or `path/CLASS/*`, of which `test_fraction` of each
    class is set aside for testing (always the same images). Classes are numbered in alphabetical order.
    """

    path: str
    size: Count | None = None
    """Bring every image to `size` x `size` pixels: the shorter side is resized to it, then the centre is cut
    out. If absent, all images must be of one size.
    """
    channels: Literal[1, 3] = 3
    """3 for colour, 1 for grey."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Only for the layout without `train` and `test`."""
    mean: tuple[Fraction, ...] | None = None
    """By channel, in units of [0, 1] pixels; measured on the training images if absent."""
    std: tuple[Positive, ...] | None = None

    def check(self) -> None:
        """Raises InputError unless the path is a folder of class folders. Quick: opens no image."""
        folder = _expanded("imagefolder", self.path)
        if not folder.exists():
            raise SettingError("data set imagefolder", "path", f"there is no folder {folder}")
        if not folder.is_dir():
            raise SettingError("data set imagefolder", "path", f"{folder} is a file; name the folder of class folders")
        if not any(child.is_dir() for child in folder.iterdir()):
            raise SettingError(
                "data set imagefolder",
                "path",
                f"{folder} has no folder in it; it must hold train/CLASS/ and test/CLASS/, or CLASS/ for each class",
            )
        _check_normalisation("imagefolder", self.mean, self.std, self.channels)

    def load(self) -> ImageData:
        """Raises InputError, naming the file, for an image that cannot be read or is of another size."""
        self.check()
        from fedsim.data.folder import read  # imports torch

        return read(self)


@dataclass(frozen=True)
class Npz:
    """A NumPy archive with the arrays x_train, y_train, x_test and y_test.

    x: (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3; uint8, another integer type with values from 0
    to 255, or floating point with values from 0 to 1 (which are rounded to 256 levels).
    y: whole numbers from 0 to classes - 1, (N,) or (N, 1).
    """

    path: str
    classes: Annotated[int, Field(ge=2)] | None = None
    """By default one more than the largest label of y_train."""
    mean: tuple[Fraction, ...] | None = None
    """By channel, in units of [0, 1] pixels; measured on the training images if absent."""
    std: tuple[Positive, ...] | None = None

    def check(self) -> None:
        """Raises InputError unless the path is an archive that holds the four arrays. Quick: reads its list alone."""
        file = _expanded("npz", self.path)
        if not file.exists():
            raise SettingError("data set npz", "path", f"there is no file {file}")
        if not file.is_file():
            raise SettingError("data set npz", "path", f"{file} is a folder; name an .npz file, or use imagefolder")
        if not zipfile.is_zipfile(file):
            raise SettingError("data set npz", "path", f"{file} is not an .npz file; write it with numpy.savez")
        try:
            with zipfile.ZipFile(file) as archive:
                present = {name.removesuffix(".npy") for name in archive.namelist()}
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise SettingError("data set npz", "path", f"{file} is damaged: {error}; write it again") from None
        missing = [key for key in KEYS if key not in present]
        if missing:
            raise SettingError(
                "data set npz",
                "path",
                f"{file}: {', '.join(missing)} missing; found: {', '.join(sorted(present)) or 'nothing'}",
            )
        _check_normalisation("npz", self.mean, self.std, None)

    def load(self) -> ImageData:
        """Raises InputError, naming the file and the array, for anything that is not as described above."""
        self.check()
        from fedsim.data.archive import read  # imports torch

        return read(self)


def _expanded(name: str, path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~somebody, whom this machine does not know
        raise SettingError(f"data set {name}", "path", f"'{path}' cannot be resolved: {error}") from None


def _check_normalisation(
    name: str, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, channels: int | None
) -> None:
    if mean is None and std is None:
        return
    if mean is None or std is None or len(mean) != len(std):
        raise InputError(f"data set {name}: mean, std: give both, with one number a channel, or neither")
    if channels is not None and len(mean) != channels:
        raise InputError(f"data set {name}: mean, std: {len(mean)} numbers for {channels} channels")
