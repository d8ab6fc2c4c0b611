"""PSNR and SSIM, of each image by itself, with torchmetrics."""

from __future__ import annotations

import torch
from torch import Tensor

HIGHEST_PSNR = 100.0
"""dB. An exact copy has no error and so no finite PSNR; it is given this, a mean squared error of 1e-10."""

_GAUSSIAN_WINDOW = 11
"""Pixels: the width of SSIM's Gaussian window of sigma 1.5."""


def psnr(guess: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB: 10 log10(1 / MSE); higher is closer, at most `HIGHEST_PSNR`.

    guess, truth: (N, C, H, W) in [0, 1]. Returns (N,).
    """
    error = (guess - truth).double().square().flatten(1).mean(1)
    return (-10 * torch.log10(error.clamp(min=10 ** (-HIGHEST_PSNR / 10)))).float()


def ssim(guess: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004); higher is closer, 1 for an exact copy, about 0 for unrelated images.

    A Gaussian window of 11 pixels, sigma 1.5. Images smaller than that get a uniform window, the widest odd one that
    fits and at most 7 pixels; such values compare with one another only.
    guess, truth: (N, C, H, W) in [0, 1]. Returns (N,).
    """
    # Here, as it takes seconds to import, and attacks that need no SSIM import this package too.
    from torchmetrics.functional.image import structural_similarity_index_measure

    side = min(truth.shape[-2:])
    settings: dict[str, object] = {}
    if side < _GAUSSIAN_WINDOW:
        settings = {"gaussian_kernel": False, "kernel_size": min(7, side - 1 + side % 2)}
    values = structural_similarity_index_measure(
        guess.float(),
        truth.float(),
        data_range=1.0,
        reduction="none",
        **settings,  # type: ignore[arg-type]
    )
    assert isinstance(values, Tensor)
    return values.reshape(len(truth))
