"""Which images MixUp mixed, from the encodings alone: few of many are in each, so the mixing matrix is sparse.

The encodings span the P images. Of all bases of that span, the one in which the encodings have the sparsest
coordinates is that of the images. It is sought as complete dictionary learning: an orthogonal change of basis that
maximises the sum of fourth powers, by the fixed point of Zhai et al., "Complete Dictionary Learning via L4-Norm
Maximization over the Orthogonal Group" (JMLR 2020), algorithm 2. That rows of coefficients sum to 1 gives the scales.
Nothing of the kind works where the signs of pixels are hidden: there an encoding is no linear mixture.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS = 100


def unmix(encodings: Tensor, images: int, mixed: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which of the images are mixed in each encoding, int64 (R, k), and first coefficients, (R, k), rows on the
    simplex. The numbering of the images, 0 to P - 1, means nothing.

    encodings: (R, D). images: P, how many there are; fewer than R and than D. mixed: k, how many a mixture holds.
    """
    basis = torch.linalg.svd(encodings.cpu().double(), full_matrices=False)[0][:, :images]
    turn = torch.linalg.qr(torch.randn(images, images, generator=rng, dtype=torch.float64))[0]
    for _ in range(_STEPS):
        left, _, right = torch.linalg.svd(basis.T @ (basis @ turn) ** 3)
        turn = left @ right
    sparse = basis @ turn
    scales = torch.linalg.lstsq(sparse, torch.ones(len(sparse), 1, dtype=torch.float64)).solution
    largest, indices = (sparse * scales.T).topk(mixed, dim=1)
    largest = largest.clamp(min=1e-6)
    return indices, (largest / largest.sum(1, keepdim=True)).float()
