"""The usual benchmark sets, through torchvision: read from a folder, fetched once if they are not there."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fedsim.errors import DataUnavailable

if TYPE_CHECKING:
    from fedsim.data.dataset import ImageData

SILENCE_S = 10.0
"""A server that says nothing for so many seconds is given up."""


def data_folder(root: str | None) -> Path:
    """Where downloaded sets live: `root`, or the environment's FEDSIM_DATA, or ~/.cache/fedsim/data."""
    chosen = root or os.environ.get("FEDSIM_DATA") or "~/.cache/fedsim/data"
    return Path(chosen).expanduser()


@dataclass(frozen=True)
class _Downloaded:
    """What the sets have in common."""

    root: str | None = None
    """Folder that holds, or is to hold, the set's own folder. By default the environment's FEDSIM_DATA, or
    ~/.cache/fedsim/data."""
    download: bool = True
    """Whether to fetch the set where it is absent."""

    name: ClassVar[str]
    of_torchvision: ClassVar[str]
    """The class in `torchvision.datasets` (and, for MNIST's kin, the folder)."""
    files: ClassVar[str]
    """What has to be in the folder, for somebody who puts it there by hand."""
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    class_names: ClassVar[tuple[str, ...] | None] = None

    def load(self) -> ImageData:
        """Raises DataUnavailable if the set is not there and cannot be fetched, or is damaged."""
        from fedsim.data.dataset import ImageData, Normalisation  # imports torch

        train = self._part(train=True)
        test = self._part(train=False)
        names = self.class_names or tuple(train.classes)
        return ImageData(self.name, _images(train), _images(test), names, Normalisation(self.mean, self.std))

    def _part(self, train: bool) -> Any:
        from torchvision import datasets  # slow to import

        open_set = getattr(datasets, self.of_torchvision)
        root = data_folder(self.root)
        try:
            return open_set(root, train=train, download=False)
        except Exception as error:
            # torchvision has no error of its own for absence, only these words.
            if not (isinstance(error, RuntimeError) and "not found" in str(error)):
                reason = f"its files are damaged ({_words(error)}); delete them"
                raise self._unavailable(root, reason) from error
            if not self.download:
                raise self._unavailable(root, f"{error} (download = false)") from error
        try:
            own = root / self.of_torchvision
            with _impatient(), _leaving_no_empty_folders(own / "raw", own, root):
                return open_set(root, train=train, download=True)
        except (OSError, HTTPException, RuntimeError, EOFError) as error:
            raise self._unavailable(root, f"fetching it failed: {_words(error)}") from error

    def _unavailable(self, root: Path, reason: str) -> DataUnavailable:
        return DataUnavailable(
            f"data set {self.name}: not available in {root}: {reason}. "
            f"Put {self.files} there by hand, name another folder with root or the environment's "
            "FEDSIM_DATA, give your own files through the data sets npz or imagefolder, "
            "or use mnist5k or digits, which need no download"
        )


@contextmanager
def _impatient() -> Iterator[None]:
    """torchvision sets no time limit on its connections: without one, a silent network means waiting for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _leaving_no_empty_folders(*folders: Path) -> Iterator[None]:
    """A failed download leaves folders behind that look like a data set; take away those that are new and empty."""
    new = [folder for folder in folders if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in new:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _images(part: Any) -> Any:
    import numpy as np
    import torch

    from fedsim.data.dataset import Images

    pixels = torch.as_tensor(part.data)  # MNIST and kin: tensor NHW; CIFAR: array NHWC
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return Images(pixels.contiguous(), torch.from_numpy(np.asarray(part.targets, dtype=np.int64)))


def _words(error: BaseException) -> str:
    """The error's own words on one line, with its type where it says nothing else."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@dataclass(frozen=True)
class MNIST(_Downloaded):
    """60,000 + 10,000 digits, 1x28x28 (LeCun et al. 1998)."""

    name: ClassVar[str] = "mnist"
    of_torchvision: ClassVar[str] = "MNIST"
    files: ClassVar[str] = "the four files MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"
    mean: ClassVar[tuple[float, ...]] = (0.1307,)
    std: ClassVar[tuple[float, ...]] = (0.3081,)
    class_names: ClassVar[tuple[str, ...] | None] = tuple("0123456789")


@dataclass(frozen=True)
class FashionMNIST(_Downloaded):
    """60,000 + 10,000 pictures of clothes, 1x28x28 (Xiao et al. 2017)."""

    name: ClassVar[str] = "fashion_mnist"
    of_torchvision: ClassVar[str] = "FashionMNIST"
    files: ClassVar[str] = "the four files FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"
    mean: ClassVar[tuple[float, ...]] = (0.2860,)
    std: ClassVar[tuple[float, ...]] = (0.3530,)


# CIFAR's files are pickles. torchvision unpickles a file only once its MD5 is that of the published one.
@dataclass(frozen=True)
class CIFAR10(_Downloaded):
    """50,000 + 10,000 photographs of 10 classes, 3x32x32 (Krizhevsky 2009)."""

    name: ClassVar[str] = "cifar10"
    of_torchvision: ClassVar[str] = "CIFAR10"
    files: ClassVar[str] = "the unpacked cifar-10-python.tar.gz (folder cifar-10-batches-py)"
    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    # The usual numbers: the mean of the images' own deviations (over all pixels it is .2470, .2435, .2616).
    std: ClassVar[tuple[float, ...]] = (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class CIFAR100(_Downloaded):
    """50,000 + 10,000 photographs of 100 classes, 3x32x32 (Krizhevsky 2009)."""

    name: ClassVar[str] = "cifar100"
    of_torchvision: ClassVar[str] = "CIFAR100"
    files: ClassVar[str] = "the unpacked cifar-100-python.tar.gz (folder cifar-100-python)"
    mean: ClassVar[tuple[float, ...]] = (0.5071, 0.4865, 0.4409)
    std: ClassVar[tuple[float, ...]] = (0.2673, 0.2564, 0.2762)
