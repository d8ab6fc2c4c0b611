"""From the magnitudes of mixtures to the images that were mixed: what InstaHide's random signs leave.

Every pixel is a problem of its own, real phase retrieval: R magnitudes |sum_p a_rp x_p|, P unknowns x, which are found
up to one sign. The published decoder (`regression.descend`) starts at zeros and stays in a minimum far from them. This
is fedsim's: alternating projections from a spectral start (Netrapalli, Jain, Sanghavi, "Phase Retrieval using
Alternating Minimization", NeurIPS 2013; large magnitudes count as in Chen, Candes, "Solving Random Quadratic Systems of
Equations Is Nearly as Easy as Solving Linear Systems", 2015, but clipped instead of dropped); and pixels where that
fails start again from their neighbours' images, since neighbours are alike.

Shapes as in `regression`: encodings (R, D), whose signs mean nothing, matrix (R, P), images (P, D).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fedsim.adversaries.decoding.regression import pseudo_inverse, residual, signed

_POWER_STEPS = 100
_PROJECTIONS = 100
_CLIP = 2.0
"""Times the mean: magnitudes squared count for no more in the spectral start, or single rows would lead it astray."""
_STILL = 1e-5
"""Normalised units: no pixel value of an image moves by more once the projections have settled."""
_SWEEPS = 10
_BETTER = 0.5
"""Of the share that a pixel leaves unexplained: a neighbour that leaves less is worth starting from."""
_RANK = 1e-5


def retrieve(encodings: Tensor, matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The images (P, D) whose mixtures have the magnitudes of the encodings, up to a sign at each pixel that all
    images share there. shape: (C, H, W) of an image, D in all.
    """
    inverse = pseudo_inverse(matrix)
    images = project(encodings, matrix, _spectral(encodings, matrix), inverse=inverse)
    energy = encodings.square().mean(0).clamp(min=torch.finfo(encodings.dtype).tiny)
    for _ in range(_SWEEPS):
        changed = False
        for here, there in _neighbours(shape, encodings.device):
            left = residual(encodings, matrix, images, True) / energy
            worth = left[there] < _BETTER * left[here]
            here, there = here[worth], there[worth]
            if not len(here):
                continue
            tried = project(encodings[:, here], matrix, images[:, there], inverse=inverse)
            better = residual(encodings[:, here], matrix, tried, True) / energy[here] < left[here]
            images[:, here[better]] = tried[:, better]
            changed = changed or bool(better.any())
        if not changed:
            break
    return images


def project(
    encodings: Tensor, matrix: Tensor, images: Tensor, steps: int = _PROJECTIONS, inverse: Tensor | None = None
) -> Tensor:
    """Better images: in turn take signs from their mixtures, and solve by least squares. inverse: of the matrix."""
    inverse = pseudo_inverse(matrix) if inverse is None else inverse
    for _ in range(steps):
        before, images = images, inverse @ signed(encodings, matrix @ images)
        if float((images - before).abs().max()) < _STILL:
            break
    return images


def _spectral(encodings: Tensor, matrix: Tensor) -> Tensor:
    """The main direction of the whitened rows, brought to one length, weighted by the magnitudes they saw; of the
    length that the magnitudes have.
    """
    left, values, right = (part.to(matrix) for part in torch.linalg.svd(matrix.cpu().double(), full_matrices=False))
    kept = values > values[0] * _RANK
    left, back = left[:, kept], right[kept].T / values[kept]
    tiny = torch.finfo(matrix.dtype).tiny
    reach = left.norm(dim=1, keepdim=True).clamp(min=tiny)
    rows = left / reach
    weights = (encodings / reach).square()
    weights = weights / weights.mean(0).clamp(min=tiny)
    weights = weights.clamp(max=_CLIP)
    # The same direction leads with or without the shift, which brings the others nearer to 0.
    shift = weights.sum(0) / (2 * left.shape[1])
    leading = left.T @ encodings.abs()
    for _ in range(_POWER_STEPS):
        leading = rows.T @ (weights * (rows @ leading)) - shift * leading
        leading = leading / leading.norm(dim=0).clamp(min=tiny)
    return back @ (leading * encodings.norm(dim=0))


def _neighbours(shape: tuple[int, ...], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """For each direction, all places (of D) that have a neighbour there, and these neighbours."""
    places = torch.arange(int(torch.Size(shape).numel()), device=device).view(shape)
    for axis, size in enumerate(shape):
        if size > 1:
            first, second = (places.narrow(axis, start, size - 1).flatten() for start in (0, 1))
            yield first, second
            yield second, first
