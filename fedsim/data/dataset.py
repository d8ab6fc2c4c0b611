"""What a data set is once it is loaded: images in 8 bits, labels, and the one normalisation that everybody uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.protocol import Batch

_columns: dict[tuple[tuple[float, ...], torch.device, torch.dtype], Tensor] = {}


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    """The values, one a channel, as a (1, C, 1, 1) tensor of the device and type of `like`."""
    # Kept, because making one on a GPU is a copy from the host: slow in an attack's loop, forbidden in a CUDA graph.
    key = (values, like.device, like.dtype)
    found = _columns.get(key)
    if found is None:
        # An inference tensor could not be used in a backward pass later.
        with torch.inference_mode(False):
            found = torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)
        # Under a tracer it is a fake one, of no use to anybody later.
        if type(found) is Tensor and not torch.compiler.is_compiling():
            _columns[key] = found
    return found


@dataclass(frozen=True)
class Normalisation:
    """Images in [0, 1] to what a network sees, and back: (x - mean) / std, by channel.

    mean, std: one number a channel, in units of [0, 1] pixels. Owned by the data set; victim, attacker and
    scorer use the same one.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] to normalised; float, on any device."""
        return (images - _column(self.mean, images)) / _column(self.std, images)

    def in_place(self, images: Tensor) -> Tensor:
        """The same, bit for bit, written over the images, which nobody else may need."""
        return images.sub_(_column(self.mean, images)).div_(_column(self.std, images))

    def inverse(self, normalised: Tensor) -> Tensor:
        """Normalised images back to [0, 1]. Not clipped."""
        return normalised * _column(self.std, normalised) + _column(self.mean, normalised)

    def box(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised images of 0 and of 1, each (1, C, 1, 1), of the device and type of `like`: the
        bounds within which a normalised image is a valid one.
        """
        mean, std = _column(self.mean, like), _column(self.std, like)
        return (0 - mean) / std, (1 - mean) / std


@dataclass(frozen=True, eq=False)
class Images:
    """Images with their labels, on the CPU.

    pixels: uint8 (N, C, H, W). labels: int64 (N,). Raises ValueError for anything else.
    """

    pixels: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            raise ValueError(f"pixels: uint8 (N, C, H, W) expected, not {_describe(self.pixels)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.pixels.shape[:1]:
            raise ValueError(f"labels: int64 ({len(self.pixels)},) expected, not {_describe(self.labels)}")

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Tensor | Sequence[int]) -> Batch:
        """The images at these places, as float32 in [0, 1], with their labels."""
        where = torch.as_tensor(indices, dtype=torch.int64)
        # index_select is many times faster than indexing here. Divided, not multiplied by 1/255: 255 becomes exactly 1.
        images = self.pixels.index_select(0, where).to(torch.float32).div_(255)
        return Batch(images, self.labels.index_select(0, where))

    def select(self, indices: Tensor | Sequence[int]) -> Images:
        """The images at these places, copied."""
        where = torch.as_tensor(indices, dtype=torch.int64)
        return Images(self.pixels[where], self.labels[where])


@dataclass(frozen=True, eq=False)
class ImageData:
    """A loaded data set. Labels run from 0 to `classes` - 1 and index `class_names`."""

    name: str
    train: Images
    test: Images
    class_names: tuple[str, ...]
    normalisation: Normalisation

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width


def measure(pixels: Tensor) -> Normalisation:
    """The normalisation under which these uint8 images (N, C, H, W) have mean 0 and variance 1 in each channel.

    Exact for any number of images: it is worked out from counts of the 256 values. A channel of one value
    only is shifted but not scaled.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in pixels.transpose(0, 1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        centre = (share * values).sum()
        spread = (share * (values - centre) ** 2).sum().sqrt()
        mean.append(float(centre))
        std.append(float(spread) if spread > 1e-6 else 1.0)
    return Normalisation(tuple(mean), tuple(std))


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
