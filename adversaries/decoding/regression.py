"""From encodings to the images that were mixed in them, where the mixtures are known: linear regression for MixUp, and
the published decoder for both MixUp and InstaHide, whose signs are random.

All pure functions on R encodings of D pixel values (R, D), in normalised units, a mixing matrix (R, P) and P images
(P, D). A row of the matrix holds the coefficients of the private images in an encoding; public images are left out of
it, so what they contribute is noise.

Source: Carlini et al., "Is Private Learning Possible with Instance Encoding?" (IEEE S&P 2021), section 5, last step,
with the choices of Huang et al. (NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

History = tuple[tuple[int, float], ...]
Report = Callable[[int], None]

_RANK = 1e-5
"""Singular values below this part of the largest are taken for 0."""
_LOOK = 50


def mixing_matrix(indices: Tensor, coefficients: Tensor, ids: Tensor) -> Tensor:
    """The matrix (R, P), float32: coefficients (R, k) in the columns of their images.

    indices: int64 (R, k), -1 for what has no column. ids: int64 (P,), ascending, all that indices name.
    """
    private = indices >= 0
    columns = torch.searchsorted(ids, indices.clamp(min=ids[0]))
    matrix = torch.zeros(len(indices), len(ids), device=indices.device)
    return matrix.scatter_add(1, columns, coefficients.to(matrix) * private)


def pseudo_inverse(matrix: Tensor) -> Tensor:
    """(P, R): the least squares of least norm. An image that no encoding holds becomes 0."""
    inverse: Tensor = torch.linalg.pinv(matrix.cpu().double(), rtol=_RANK)
    return inverse.to(matrix)


def least_squares(encodings: Tensor, matrix: Tensor) -> Tensor:
    """The images (P, D) whose mixtures are nearest to the encodings, in closed form."""
    return pseudo_inverse(matrix) @ encodings


def signed(encodings: Tensor, mixtures: Tensor) -> Tensor:
    """|encodings| with the sign of the mixtures; minus where these are 0."""
    size = encodings.abs()
    return torch.where(mixtures > 0, size, -size)


def residual(encodings: Tensor, matrix: Tensor, images: Tensor, hidden_signs: bool) -> Tensor:
    """The mean squared difference of encodings and mixtures, (D,), by pixel; of their magnitudes where the signs are
    hidden.
    """
    mixtures = matrix @ images
    target = signed(encodings, mixtures) if hidden_signs else encodings
    return (mixtures - target).square().mean(0)


def descend(
    encodings: Tensor,
    matrix: Tensor,
    *,
    hidden_signs: bool,
    prior: float,
    steps: int,
    step_size: float,
    report: Report = lambda done: None,
) -> tuple[Tensor, History]:
    """The published decoder: Adam from zeros on mean r^2 + prior * mean (1 - |x|), both means over all entries.

    r is encoding minus mixture m; where signs are hidden, the smaller in magnitude of |e| - m and -(|e| + m), the
    latter where they tie, as they do at the start. The prior rewards magnitude in normalised units without bound; it
    is what limits perfect MixUp encodings to about 37 dB (published: 0.05, for both encodings).
    Returns the images (P, D) and (step, objective) pairs.
    """
    images = torch.zeros(matrix.shape[1], encodings.shape[1], device=encodings.device)
    optimiser = torch.optim.Adam([images], lr=step_size)
    # Without hidden signs all that the derivative needs is P x P and P x D, however many encodings there are.
    square, seen = matrix.T @ matrix, matrix.T @ encodings
    history = []
    for step in range(steps):
        if step % _LOOK == 0:
            history.append((step, _objective(encodings, matrix, images, hidden_signs, prior)))
            report(step)
        if hidden_signs:
            mixtures = matrix @ images
            slope = matrix.T @ (mixtures - signed(encodings, mixtures))
        else:
            slope = square @ images - seen
        images.grad = slope * (2 / encodings.numel()) - images.sign() * (prior / images.numel())
        optimiser.step()
    images.grad = None
    history.append((steps, _objective(encodings, matrix, images, hidden_signs, prior)))
    return images, tuple(history)


def _objective(encodings: Tensor, matrix: Tensor, images: Tensor, hidden_signs: bool, prior: float) -> float:
    fit = residual(encodings, matrix, images, hidden_signs).mean()
    return float(fit + prior * (1 - images.abs().mean()))
