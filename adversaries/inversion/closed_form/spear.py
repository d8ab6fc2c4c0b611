"""Exact inputs of a batch from the gradient of a fully connected layer before a ReLU.

"SPEAR: Exact Gradient Inversion of Batches in Federated Learning" (Dimitrov, Baader, Mueller, Vechev; NeurIPS 2024).
Layer Z = X W^T + c with X (b, n) and m neurons, and D (m, b) the derivative of the loss by Z^T. The gradients are
    dL/dW = D X,   dL/dc = D 1.
dL/dW has rank b, so dL/dW = U R with U (m, b), R (b, n), and D = U Q, X = Q^-1 R for one invertible Q (b, b), the
disaggregation matrix. Where the ReLU is off D is exactly zero. So if b - 1 rows of U belong to neurons that are off for
image i, their null vector is column i of Q up to its scale: draw rows, and keep the null vectors q for which U q has
far more zeros than the b - 1 it was made for. The scales follow from dL/dc = U Q s.

Here U is orthonormal, its rows scaled to length 1: then "zero" means the same in every row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_FLOOR = 1e-8
"""Singular values below this share of the largest are rounding, of a gradient in float32."""
_SURE = 10.0
"""By what factor the singular values have to fall after the last one that counts."""
_SIGMAS = 6.0
"""A value below so many standard deviations of its noise may be zero."""
_GLANCE = 100
"""On about so many rows a direction is tried before all are."""
_FINE = 0.01
"""A refined direction is near enough for zeros to be told with so much of the tolerance."""
_DEPENDENT = 1e-2
"""A direction that is that near to the span of others is one of their combinations."""


@dataclass(frozen=True)
class Factors:
    """dL/dW = left @ right, of rank b.

    rows: (r,) int64, the neurons that say something. left: (r, b), their rows of U, each scaled to length 1.
    length: (r,), what they were scaled by. noise: (r,), the standard deviation of an entry of dL/dW in each, estimated
    from what the rank leaves over. scale: (b,), the singular values. right: (b, n), rows of R, orthogonal.
    """

    rows: Tensor
    left: Tensor
    length: Tensor
    noise: Tensor
    scale: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        return len(self.scale)

    def allowed(self, directions: Tensor, tolerance: float, every: int = 1) -> Tensor:
        """How far from zero a zero of left @ directions may be: (r, k).

        directions: (b, k), columns of length 1. tolerance: the least of it, beside a row's length of 1; more is allowed
        where the gradient is noisier. every: look at every so many-th row alone.
        """
        spread = (directions / self.scale[:, None]).norm(dim=0)
        return ((_SIGMAS * self.noise[::every] / self.length[::every])[:, None] * spread).clamp(min=tolerance)

    def zero(self, directions: Tensor, tolerance: float, every: int = 1) -> Tensor:
        """Which entries of left @ directions are zero: bool (r, k). The arguments are those of `allowed`."""
        return (self.left[::every] @ directions).abs() <= self.allowed(directions, tolerance, every)


def numerical_rank(singular: Tensor) -> int | None:
    """Where the singular values, falling, drop the most; None if nowhere by a factor of 10.

    Values below 1e-8 of the largest are taken for that.
    """
    if len(singular) < 2:
        return len(singular)
    floored = singular.clamp(min=float(_FLOOR * singular[0]))
    drops = floored[:-1] / floored[1:]
    return int(drops.argmax()) + 1 if drops.max() > _SURE else None


def factorise(weight: Tensor, count: int) -> tuple[Factors, int | None]:
    """The factors of dL/dW (m, n), float64, and its numerical rank.

    count: the rank to take where the numerical one is not to be seen, or larger.
    """
    alive = torch.nonzero(weight.abs().amax(1) > 0).flatten()
    kept = weight[alive]
    left, scale, right = torch.linalg.svd(kept, full_matrices=False)
    seen = numerical_rank(scale)
    rank = min(seen or count, count, len(scale))
    left, scale, right = left[:, :rank], scale[:rank], right[:rank]
    freedom = max(kept.shape[1] - rank, 1)
    noise = (kept - (left * scale) @ right).norm(dim=1) / freedom**0.5
    length = left.norm(dim=1)
    # Rows that are mostly noise are near to zero in any direction.
    clear = (kept.norm(dim=1) > 10 * noise * kept.shape[1] ** 0.5) & (length > 0)
    if int(clear.sum()) < rank:
        clear = length > 0
    factors = Factors(
        rows=alive[clear],
        left=left[clear] / length[clear, None],
        length=length[clear],
        noise=noise[clear],
        scale=scale,
        right=scale[:, None] * right,
    )
    return factors, seen


def draw_rows(count: int, rows: int, width: int, rng: torch.Generator) -> Tensor:
    """`count` sets of `width` distinct numbers below `rows` (at least `width`), int64 (count, width), each rising."""
    drawn = torch.randint(rows - width + 1, (count, width), generator=rng)
    # Sorted draws with repetition become distinct once their places are added.
    return drawn.sort(1).values + torch.arange(width)


def null_vectors(matrices: Tensor, helper: Tensor) -> Tensor:
    """The unit vector that each (b - 1, b) matrix maps to zero: (N, b); zeros where there is not one alone.

    matrices: (N, b - 1, b). helper: (b,), any vector that is orthogonal to none of them: it completes the systems.
    """
    count, _, width = matrices.shape
    square = torch.cat([matrices, helper.expand(count, 1, width)], 1)
    wanted = matrices.new_zeros(width)
    wanted[-1] = 1
    solved, info = torch.linalg.solve_ex(square, wanted.expand(count, width))
    size = solved.norm(dim=1, keepdim=True)
    good = (info == 0)[:, None] & torch.isfinite(size) & (size > 0)
    return torch.where(good, solved / size, 0)


def refine(factors: Factors, direction: Tensor, tolerance: float) -> Tensor:
    """The unit vector (b,) that is nearest to being orthogonal to all the rows on which `direction` is zero.

    Hundreds of rows instead of b - 1, each by how exactly it is known. Done again with smaller tolerances, which sheds
    rows that were small by chance.
    """
    for shrink in (1.0, 0.1, _FINE):
        zero = factors.zero(direction[:, None], shrink * tolerance)[:, 0]
        if int(zero.sum()) < factors.rank - 1:
            break
        error = factors.allowed(direction[:, None], _FINE * tolerance)[zero]
        rows = factors.left[zero] / error * error.min()
        direction = torch.linalg.eigh(rows.T @ rows)[1][:, 0]
    return direction


def basis(directions: Tensor, zeros: Tensor) -> list[int]:
    """Indices of independent directions, greedily by most zeros.

    directions: (k, b), of length 1. zeros: (k,). A combination of columns of D is zero about where all of them are, so
    it has fewer zeros than each. Independent sets form a matroid, in which greedy is best: once all columns of Q are
    among the directions it takes them and no combination, and what it drops at one time it would never need later.
    """
    left = directions.clone()
    free = torch.ones(len(directions), dtype=torch.bool, device=directions.device)
    taken: list[int] = []
    while free.any() and len(taken) < directions.shape[1]:
        best = int(torch.where(free, zeros, -1).argmax())
        taken.append(best)
        axis = left[best] / left[best].norm()
        left = left - (left @ axis)[:, None] * axis
        free &= left.norm(dim=1) > _DEPENDENT
    return taken


@dataclass(frozen=True)
class Solution:
    """columns: (b, b), Q with its scales. inputs: (b, n), normalised images. agreement: (b,), see `agreement`."""

    columns: Tensor
    inputs: Tensor
    agreement: Tensor


def disaggregate(factors: Factors, directions: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Q with its scales, (b, b), and the inputs, (b, n).

    directions: (b, b), columns of Q up to scale. bias: dL/dc, (m,). Scales s solve U Q s = dL/dc in least squares.
    """
    unit = factors.left * factors.length[:, None]
    scales = torch.linalg.lstsq(unit @ directions, bias[factors.rows][:, None]).solution[:, 0]
    scales = torch.where(scales.abs() > 0, scales, torch.finfo(scales.dtype).eps)
    columns = directions * scales
    return columns, torch.linalg.solve(columns, factors.right)


def agreement(factors: Factors, directions: Tensor, outputs: Tensor, tolerance: float) -> Tensor:
    """The sparsity matching score lambda of each image: (b,), 1 if all fits.

    The share of neurons that are off (output not above 0) where D is zero, or on where it is not. A direction that is
    no column of Q spoils inputs and D, and the two then disagree on up to half.
    outputs: Z of the inputs found, (r, b), at `factors.rows`.
    """
    on = ~factors.zero(directions, tolerance)
    return (on == (outputs > 0)).double().mean(0)


def solve(
    factors: Factors, directions: Tensor, bias: Tensor, layer: tuple[Tensor, Tensor], tolerance: float
) -> Solution:
    """Inputs and their score from refined directions (b, b), one a column. layer: the weight (m, n), the bias (m,)."""
    columns, inputs = disaggregate(factors, directions, bias)
    weight, offset = layer
    outputs = weight[factors.rows] @ inputs.T + offset[factors.rows, None]
    return Solution(columns, inputs, agreement(factors, directions, outputs, _FINE * tolerance))


@dataclass(frozen=True)
class Search:
    """What the search did. solution: the best by its worst image's agreement. found: independent sparse directions."""

    solution: Solution
    found: int
    samples: int
    history: tuple[tuple[int, float], ...]


def search(
    factors: Factors,
    bias: Tensor,
    layer: tuple[Tensor, Tensor],
    *,
    samples: int,
    sparsity: float,
    tolerance: float,
    agree: float,
    rng: torch.Generator,
    report: Callable[[int, str], None],
) -> Search:
    """Draw rows until all b directions are found and fit together, or `samples` sets of rows are drawn.

    bias: dL/dc, (m,). layer: as for `solve`. sparsity: the share of the rows on which a direction has to be zero.
    agree: the agreement of every image at which to stop. report: told the sets drawn and a word, now and then.
    """
    rank, rows = factors.rank, len(factors.rows)
    device, dtype = factors.left.device, factors.left.dtype
    if rank == 1:
        only = torch.ones(1, 1, device=device, dtype=dtype)
        return Search(solve(factors, only, bias, layer, tolerance), 1, 0, ())
    enough = max(rank + 1, round(sparsity * rows))
    chunk = max(64, min(16384, 2**24 // rows))
    pool = torch.zeros(0, rank, device=device, dtype=dtype)
    best: Solution | None = None
    history: list[tuple[int, float]] = []
    done, best_found = 0, 0
    while done < samples:
        chunk_now = min(chunk, samples - done)
        picked = draw_rows(chunk_now, rows, rank - 1, rng).to(device)
        helper = torch.randn(rank, generator=rng, dtype=dtype).to(device)
        drawn = null_vectors(factors.left[picked], helper)
        done += chunk_now
        grown = merge(factors, pool, drawn, enough, tolerance)
        report(done, f"{len(grown)} of {rank} directions")
        changed = grown.shape != pool.shape or not torch.equal(grown, pool)
        pool = grown
        if len(pool) < rank or not changed:
            continue
        solution = solve(factors, pool.T, bias, layer, tolerance)
        worst = float(solution.agreement.min())
        history.append((done, worst))
        if best is None or worst > float(best.agreement.min()):
            best, best_found = solution, len(pool)
        if worst >= agree:
            break
    if best is None:
        best, best_found = solve(factors, completed(pool).T, bias, layer, tolerance), len(pool)
    return Search(best, best_found, done, tuple(history))


def merge(factors: Factors, pool: Tensor, drawn: Tensor, enough: int, tolerance: float) -> Tensor:
    """The best independent directions of the pool (k, b) and those drawn (N, b), each refined: (k', b).

    enough: the least number of zeros. Drawn directions in the span of better ones go at once.
    """
    some = max(1, len(factors.rows) // _GLANCE)
    promising = factors.zero(drawn.T, tolerance, some).sum(0) >= enough / some / 2
    drawn = drawn[promising & (drawn.norm(dim=1) > 0.5)]
    passed = factors.zero(drawn.T, tolerance).sum(0) >= enough
    everything = torch.cat([pool, drawn[passed]])
    # The pool's own counts are with the same tolerance, so that equals compare as equals.
    counts = factors.zero(everything.T, tolerance).sum(0)
    chosen = everything[basis(everything, counts)]
    old = {tuple(row.tolist()) for row in pool}
    refined = [row if tuple(row.tolist()) in old else refine(factors, row, tolerance) for row in chosen]
    if not refined:
        return pool
    together = torch.stack(refined)
    return together[sorted(basis(together, factors.zero(together.T, tolerance).sum(0)))]


def completed(directions: Tensor) -> Tensor:
    """(k, b) filled up to (b, b) with unit vectors orthogonal to the given: placeholders for those not found."""
    width = directions.shape[1]
    if len(directions) == width:
        return directions
    full = torch.linalg.svd(directions, full_matrices=True)[2] if len(directions) else torch.eye(width).to(directions)
    return torch.cat([directions, full[len(directions) :]])
