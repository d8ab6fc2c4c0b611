"""Reading a NumPy archive of images, with every way in which it can be wrong named by file and array."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from fedsim.data.dataset import ImageData, Images, Normalisation, measure
from fedsim.data.files import Npz
from fedsim.errors import InputError


def read(settings: Npz) -> ImageData:
    """Raises InputError as `Npz.load` says."""
    file = Path(settings.path).expanduser()
    x_train, x_test = _pixels(file, "x_train"), _pixels(file, "x_test")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise _wrong(file, "x_test", f"images of {_size(x_test)}, where x_train has {_size(x_train)}")
    y_train = _labels(file, "y_train", len(x_train), settings.classes)
    classes = settings.classes or int(y_train.max()) + 1
    if classes < 2:
        raise _wrong(file, "y_train", "only the label 0; at least two classes are needed (or set classes)")
    y_test = _labels(file, "y_test", len(x_test), classes)
    train = Images(torch.from_numpy(x_train), torch.from_numpy(y_train))
    test = Images(torch.from_numpy(x_test), torch.from_numpy(y_test))
    if settings.mean is None or settings.std is None:
        normalisation = measure(train.pixels)
    elif len(settings.mean) == x_train.shape[1]:
        normalisation = Normalisation(settings.mean, settings.std)
    else:
        raise InputError(
            f"data set npz: mean, std: {len(settings.mean)} numbers, but the images have {x_train.shape[1]} channels"
        )
    return ImageData(file.stem, train, test, tuple(map(str, range(classes))), normalisation)


def _array(file: Path, key: str) -> np.ndarray:
    try:
        # No pickle: an archive is data, and must not be able to run code.
        with np.load(file, allow_pickle=False) as archive:
            return np.asarray(archive[key])
    except ValueError as error:
        raise _wrong(file, key, f"cannot be read ({error}); save it as an array of numbers") from error
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise _wrong(file, key, f"is damaged: {error}") from error


def _pixels(file: Path, key: str) -> np.ndarray:
    """(N, C, H, W) in 8 bits."""
    array = _array(file, key)
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] not in (1, 3):
        raise _wrong(
            file,
            key,
            f"has the shape {array.shape}; (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3 expected",
        )
    if not array.size:
        raise _wrong(file, key, f"is empty, of shape {array.shape}")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise _wrong(file, key, "holds NaN or infinite values")
        _check_range(file, key, array, 1, "floating-point pixels run from 0 to 1; divide by 255, or save as uint8")
        array = np.rint(array * 255)
    elif array.dtype.kind in "iu":
        _check_range(file, key, array, 255, "whole-number pixels run from 0 to 255")
    else:
        raise _wrong(file, key, f"is of type {array.dtype}; uint8, or float from 0 to 1, expected")
    return np.ascontiguousarray(array, dtype=np.uint8)


def _labels(file: Path, key: str, count: int, classes: int | None) -> np.ndarray:
    """int64 (N,)."""
    array = _array(file, key)
    if array.shape == (count, 1):
        array = array[:, 0]
    if array.shape != (count,):
        raise _wrong(file, key, f"has the shape {array.shape}; one label an image, ({count},), expected")
    if array.dtype.kind not in "iu":
        raise _wrong(file, key, f"is of type {array.dtype}; whole numbers expected")
    low, high = int(array.min()), int(array.max())
    if low < 0 or (classes is not None and high >= classes):
        upper = f"0 to {classes - 1}" if classes is not None else "0 on"
        raise _wrong(file, key, f"holds labels from {low} to {high}; {upper} expected")
    return array.astype(np.int64)


def _check_range(file: Path, key: str, array: np.ndarray, high: int, rule: str) -> None:
    if array.min() < 0 or array.max() > high:
        raise _wrong(file, key, f"holds values from {array.min()} to {array.max()}; {rule}")


def _size(images: np.ndarray) -> str:
    return "x".join(map(str, images.shape[1:]))


def _wrong(file: Path, key: str, problem: str) -> InputError:
    return InputError(f"data set npz: {file}: {key}: {problem}")
