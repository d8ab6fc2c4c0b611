"""The equations of one layer in R-GAP, solved for the layer's input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse
from scipy.linalg import lapack
from torch import Tensor

from fedsim.adversaries.inversion.closed_form.rgap_layers import Array, Matrix, Operator
from fedsim.errors import InputError

RANK_TOLERANCE = 1e-6
"""Singular values below this share of the largest say nothing in a float32 gradient."""


@dataclass(frozen=True)
class Solved:
    """A layer's input, and how well it was determined.

    values: (unknowns,). residual: of the weighted equations, relative to their right side.
    equations: how many there were, those of weight 0 left out. rank: of them; None if it was not asked for.
    ridge: the share of the mean square that was added to the normal equations.
    """

    values: Array
    residual: float
    equations: int
    rank: int | None
    ridge: float


def solve(
    operator: Operator, z: Array, weight: Array, slope: Array, gradient: Tensor, ridge: float, ranks: bool
) -> Solved:
    """The input x of a layer by weighted least squares.

    z, weight, slope: (outputs,): the layer's output, what its equation weighs, and dL/dz. gradient: dL/dW.
    ridge: added to the normal equations, as a share of their mean diagonal; ten times as much, again and again, where
    they are not positive definite in float64. ranks: whether to find the rank of the equations.

    The normal equations square the condition number c, and so err by about 1e-16 c^2; the gradient's rounding to
    float32 by 1e-7 c, which is more up to c = 1e9, where nothing is left anyway. For them the gradient constraints are
    the same small block for every input channel.
    """
    above, right = _balanced(
        sparse.diags_array(weight) @ operator.matrix, weight * (z - operator.shift), operator.unknowns
    )
    block, seen = _balanced(operator.gradient_block(slope), operator.gradient_rows(gradient), operator.size)
    normal = above.T @ above
    normal = np.ascontiguousarray(normal) if isinstance(normal, np.ndarray) else normal.toarray()
    each = np.arange(operator.channels)
    normal.reshape(len(each), operator.size, len(each), operator.size)[each, :, each, :] += block.T @ block
    scale = np.trace(normal) / operator.unknowns
    if not (np.isfinite(scale) and scale > 0):
        raise InputError(
            "R-GAP: no equation is left at a layer, as all slopes above it are zero or not finite: this gradient "
            "cannot be walked back; attack another round, or use another network"
        )
    rank = _rank(normal, block) if ranks else None
    factor, used = _factor(normal, ridge, scale)

    def missing(x: Array) -> tuple[Array, Array]:
        return right - above @ x, seen - block @ x.reshape(operator.channels, operator.size).T

    x = np.zeros(operator.unknowns)
    for _ in range(2):  # the second pass takes away most of what the ridge and rounding did to the first
        first, second = missing(x)
        x += linalg.cho_solve(factor, above.T @ first + (block.T @ second).T.ravel(), check_finite=False)
    first, second = missing(x)
    left = np.hypot(np.linalg.norm(first), np.linalg.norm(second))
    whole = np.hypot(np.linalg.norm(right), np.linalg.norm(seen))
    equations = int((weight != 0).sum()) + int(block.any(axis=1).sum()) * operator.channels
    return Solved(x, float(left / whole) if whole else 0.0, equations, rank, used)


def _balanced(matrix: Matrix, right: Array, unknowns: int) -> tuple[Matrix, Array]:
    """Both sides divided by the root mean square length of the matrix's columns."""
    power = np.sqrt((matrix**2).sum() / unknowns)
    return (matrix / power, right / power) if power > 0 else (matrix, right)


def _factor(normal: Array, ridge: float, scale: float) -> tuple[tuple[Array, bool], float]:
    diagonal = np.diag_indices(len(normal))
    clean = normal[diagonal]
    while True:
        normal[diagonal] = clean + ridge * scale
        try:
            return linalg.cho_factor(normal, lower=True, check_finite=False), ridge
        except linalg.LinAlgError:
            ridge *= 10


def _rank(normal: Array, block: Array) -> int:
    """The rank of the equations: where the gradient constraints do not suffice, by Cholesky with pivoting."""
    sizes = np.linalg.svd(block, compute_uv=False)
    if len(sizes) == block.shape[1] and sizes[-1] > RANK_TOLERANCE * sizes[0]:
        return len(normal)
    _, _, rank, _ = lapack.dpstrf(normal, tol=RANK_TOLERANCE**2 * normal.diagonal().max(), lower=1)
    return int(rank)
