"""LPIPS as the published evaluation of Huang et al. (NeurIPS 2021) computes it, for comparison with its tables alone.

It differs from `fedsim.metrics.lpips` in what the network is shown and in what is compared with what, read off the
code that its authors released (GradAttack, `examples/calc_metric.py` and `examples/attack_decode.py`). LPIPS expects
[-1, 1]; there it gets
    undefended and pruned updates: images normalised by the data set's mean and standard deviation (CIFAR-10's reach
        from -2.4 to 2.8), and of every reconstruction the smallest distance to any image of its batch, so that several
        reconstructions may score by the same image and others of the batch count for nothing;
    mixup and instahide: each decoded image by itself stretched to [-1, 1], all its channels together, against the
        truth, normalised by mean and standard deviation but not stretched; image n against image n. Even an exact
        copy is at a distance.
Hence the columns of its tables compare neither with one another nor with LPIPS elsewhere. Its network is `vgg`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.data.dataset import Normalisation
from fedsim.metrics.lpips import Net, lpips


def lpips_inverted(
    guess: Tensor, truth: Tensor, normalise: Normalisation, net: Net = "vgg"
) -> tuple[Tensor | None, str | None]:
    """For each reconstruction its smallest distance to an image of the batch, with replacement.

    guess: (N, C, H, W), truth: (M, C, H, W), in [0, 1]. Returns ((N,), None), or (None, why) without weights.
    """
    shown, real = normalise(guess), normalise(truth)
    nearest = []
    for one in shown:
        distances, note = lpips(one.expand_as(real), real, net, normalize=False)
        if distances is None:
            return None, note
        nearest.append(distances.min())
    return torch.stack(nearest), None


def lpips_decoded(
    guess: Tensor, truth: Tensor, normalise: Normalisation, net: Net = "vgg"
) -> tuple[Tensor | None, str | None]:
    """The distance of each decoded image, stretched, to the image of the same place.

    guess, truth: (N, C, H, W) in [0, 1]. Returns ((N,), None), or (None, why) without weights.
    """
    return lpips(_stretched(normalise(guess)), normalise(truth), net, normalize=False)


def _stretched(images: Tensor) -> Tensor:
    """Each image's least value, over all channels, to -1, and its greatest to 1; one of a single value to -1."""
    low, high = (edge(images, dim=(1, 2, 3), keepdim=True) for edge in (torch.amin, torch.amax))
    return 2 * (images - low) / (high - low).clamp(min=torch.finfo(images.dtype).tiny) - 1
