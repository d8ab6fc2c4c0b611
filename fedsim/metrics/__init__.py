"""Scores of a reconstruction against the truth, over images in [0, 1]."""

from fedsim.metrics.labels import label_accuracy
from fedsim.metrics.lpips import lpips
from fedsim.metrics.matching import match
from fedsim.metrics.pixels import psnr, ssim

__all__ = ["label_accuracy", "lpips", "match", "psnr", "ssim"]
