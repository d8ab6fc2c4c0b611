"""Mixing coefficients that were not granted: by alternating least squares with the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fedsim.adversaries.decoding import magnitudes, regression

_DESCENTS = 30
_PROJECTIONS = 10
"""Of `magnitudes.project` in a turn. The images of the turn before are a good start."""


@dataclass(frozen=True)
class Labels:
    """What soft labels say of the mixtures. mixed: (R, classes), of the encodings. images: int64 (P,), the classes."""

    mixed: Tensor
    images: Tensor


def even(indices: Tensor) -> Tensor:
    """The same coefficient for all that are mixed, (R, k)."""
    return torch.full(indices.shape, 1 / indices.shape[1], device=indices.device)


def classes(mixed: Tensor, matrix: Tensor) -> Tensor:
    """The class of each image, int64 (P,), by regression from the soft labels (R, classes). matrix: of the
    coefficients, or of even ones.
    """
    return regression.least_squares(mixed, matrix).argmax(1)


def estimate(
    encodings: Tensor,
    indices: Tensor,
    ids: Tensor,
    *,
    hidden_signs: bool,
    shape: tuple[int, ...],
    turns: int,
    labels: Labels | None = None,
    start: Tensor | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """The coefficients (R, k), rows on the simplex, with which least squares explain the encodings best.

    shape: (C, H, W), of an image. start: first coefficients, even ones if absent. labels: what soft labels say, if
    they are known: the coefficients of a class's images then sum to its weight, and only images of one class in one
    mixture are told apart by pixels. Without labels there are only pixels, and their residual may have other minima.
    """
    columns = torch.where(indices >= 0, torch.searchsorted(ids, indices.clamp(min=ids[0])), len(ids))
    weight = encodings.shape[1] ** 0.5  # as much as a whole image, so that labels, which are exact, decide first
    named: Tensor | None = None
    found = even(indices) if start is None else start
    if labels is not None:
        named = one_hot(labels.images, labels.mixed.shape[1]).to(encodings)
        found = fit(labels.mixed, named, columns, found)
    images: Tensor | None = None
    for turn in range(turns):
        report(turn)
        matrix = regression.mixing_matrix(indices, found, ids)
        if hidden_signs:
            if images is None:
                images = magnitudes.retrieve(encodings, matrix, shape)
            else:
                images = magnitudes.project(encodings, matrix, images, _PROJECTIONS)
            targets = regression.signed(encodings, matrix @ images)
        else:
            images, targets = regression.least_squares(encodings, matrix), encodings
        atoms = images
        if labels is not None and named is not None:
            atoms = torch.cat([images, weight * named], 1)
            targets = torch.cat([targets, weight * labels.mixed.to(targets)], 1)
        found = fit(targets, atoms, columns, found)
    return found


def fit(targets: Tensor, atoms: Tensor, columns: Tensor, start: Tensor) -> Tensor:
    """For each row the weights on the simplex (R, k) of its k atoms that come nearest to its target, by projected
    gradient descent from `start`.

    targets: (R, D). atoms: (P, D). columns: int64 (R, k), which atoms; P for one that is all zeros.
    """
    atoms = torch.cat([atoms, torch.zeros_like(atoms[:1])])
    gram = (atoms @ atoms.T)[columns[:, :, None], columns[:, None, :]]
    seen = (targets @ atoms.T).gather(1, columns)
    # The trace bounds the largest eigenvalue, but is up to k times too cautious.
    rate = 1 / torch.linalg.eigvalsh(gram.cpu())[:, -1:].to(gram).clamp(min=torch.finfo(gram.dtype).tiny)
    for _ in range(_DESCENTS):
        slope = (gram @ start[:, :, None])[:, :, 0] - seen
        start = simplex(start - rate * slope)
    return start


def simplex(rows: Tensor) -> Tensor:
    """Each row's nearest point with entries from 0 on that sum to 1 (Duchi et al., ICML 2008, figure 1)."""
    falling = rows.sort(1, descending=True).values
    above = falling.cumsum(1) - 1
    place = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    kept = (falling * place > above).sum(1, keepdim=True).clamp(min=1)
    return (rows - above.gather(1, kept - 1) / kept).clamp(min=0)
