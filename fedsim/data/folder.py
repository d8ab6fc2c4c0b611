"""Reading a folder of image files into memory, as 8-bit images of one size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from fedsim import progress
from fedsim.data.dataset import ImageData, Images, Normalisation, measure
from fedsim.data.files import ImageFolder
from fedsim.data.splitting import stratified
from fedsim.errors import InputError, suggestion

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
REPORT_EVERY = 500

Listing = list[tuple[Path, int]]


def read(settings: ImageFolder) -> ImageData:
    """Raises InputError as `ImageFolder.load` says."""
    root = Path(settings.path).expanduser()
    if (root / "train").is_dir() and (root / "test").is_dir():
        names = _classes(root / "train")
        listing = _listing(root / "train", names)
        test_listing = _listing(root / "test", names)
        pixels = _pixels(listing + test_listing, settings)
        labels = _labels(listing + test_listing)
        order = np.arange(len(labels))
        train, test = order[: len(listing)], order[len(listing) :]
    else:
        names = _classes(root)
        listing = _listing(root, names)
        pixels, labels = _pixels(listing, settings), _labels(listing)
        train, test = stratified(labels, settings.test_fraction, "imagefolder")
        if not len(test):
            raise InputError(f"data set imagefolder: {root}: no class has the two images that a split needs")
    parts = [Images(torch.from_numpy(pixels[part]), torch.from_numpy(labels[part])) for part in (train, test)]
    if settings.mean is not None and settings.std is not None:
        normalisation = Normalisation(settings.mean, settings.std)
    else:
        normalisation = measure(parts[0].pixels)
    return ImageData(root.resolve().name, parts[0], parts[1], names, normalisation)


def _classes(folder: Path) -> tuple[str, ...]:
    found = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    if len(found) < 2:
        raise InputError(f"data set imagefolder: {folder} has {len(found)} class folder(s); at least two are needed")
    return tuple(found)


def _listing(folder: Path, names: tuple[str, ...]) -> Listing:
    """Every image file with its label, by class and then by file name."""
    unknown = set(_classes(folder)) - set(names)
    if unknown:
        first = min(unknown)
        raise InputError(
            f"data set imagefolder: {folder / first}: no class of that name in train{suggestion(first, names)}"
        )
    listing: Listing = []
    for label, name in enumerate(names):
        # A test folder may lack a class; a training folder has just given the names.
        children = sorted((folder / name).iterdir()) if (folder / name).is_dir() else []
        images = [
            child
            for child in children
            if child.suffix.lower() in SUFFIXES and child.is_file() and not child.name.startswith(".")
        ]
        if not images and (folder / name).is_dir():
            raise InputError(
                f"data set imagefolder: {folder / name} holds no image ({', '.join(SUFFIXES)}); add some or remove it"
            )
        listing.extend((image, label) for image in images)
    return listing


def _labels(listing: Listing) -> np.ndarray:
    return np.array([label for _, label in listing], dtype=np.int64)


def _pixels(listing: Listing, settings: ImageFolder) -> np.ndarray:
    """(N, C, H, W) in 8 bits."""
    first = _image(listing[0][0], settings)
    height, width = first.shape[1:]
    pixels = np.empty((len(listing), settings.channels, height, width), dtype=np.uint8)
    for place, (file, _) in enumerate(listing):
        image = _image(file, settings)
        if image.shape != first.shape:
            raise InputError(
                f"data set imagefolder: {file} is {image.shape[2]}x{image.shape[1]} pixels, "
                f"{listing[0][0].name} is {width}x{height}; set size, to bring all images to one size"
            )
        pixels[place] = image
        if (place + 1) % REPORT_EVERY == 0:
            progress.report(place + 1, len(listing), "reading images")
    return pixels


def _image(file: Path, settings: ImageFolder) -> np.ndarray:
    """(C, H, W) in 8 bits."""
    try:
        with Image.open(file) as opened:
            if opened.mode.startswith(("I", "F")):
                # PIL would clip these to 255 and give a white image.
                raise InputError(f"data set imagefolder: {file} has more than 8 bits a pixel; save it with 8")
            image = opened.convert("RGB" if settings.channels == 3 else "L")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        words = str(error) or type(error).__name__
        raise InputError(f"data set imagefolder: {file} cannot be read as an image: {words}") from error
    if settings.size is not None:
        image = _square(image, settings.size)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _square(image: Image.Image, size: int) -> Image.Image:
    """The shorter side resized to `size` (bilinear, over all pixels that a new one covers), the centre cut out."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
