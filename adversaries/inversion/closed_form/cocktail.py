"""Blind separation of the inputs that a fully connected layer's gradient mixes (Kariyappa et al., ICML 2023).

The gradient G (out, in) of a linear layer's weight is D X: row i of X (N, in) is the input of example i, column i of
D (out, N) its derivative of the loss by the layer's outputs. With N at most `out`, each input is a combination of G's
rows, and which one is found by what a mixture is not: sparse, unlike the others, within the range of valid values. The
bias's gradient is D 1, so a combination v of rows with v G = c x_i has v g_b = c: scale, sign and offset come with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LOOK_EVERY = 50
"""Steps between two looks at the objective, which wait for the device."""

NORMAL_LOGCOSH = 0.3745672
"""E[log cosh v] of v ~ N(0, 1)."""

TOLERANCE = 1e-12
"""An eigenvalue below this share of the largest is the rounding of a float32 gradient, not an input."""

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Weights:
    """Of the terms of the objective. See `Separation.value` and the settings of the recipe `cocktail_party`."""

    negentropy: float
    decorrelation: float
    temperature: float
    relax: float
    tv: float
    box: float


@dataclass(frozen=True)
class Mixture:
    """K combinations of the layer's inputs, of which every input is a combination.

    white: (K, M), what is to become independent: mean 0 and covariance 1. values: (K, in), the same combinations of the
        inputs, not centred. sparse: (K, M'), what the sparsity prior acts on. bias: (K,), the same combinations of the
        bias's gradient, or None.
    """

    white: Tensor
    values: Tensor
    sparse: Tensor
    bias: Tensor | None

    def to(self, device: torch.device, dtype: torch.dtype) -> Mixture:
        """A copy on a device, in a type."""
        return Mixture(
            self.white.to(device, dtype),
            self.values.to(device, dtype),
            self.sparse.to(device, dtype),
            None if self.bias is None else self.bias.to(device, dtype),
        )


def whitening(signals: Tensor, count: int) -> Tensor:
    """The matrix (K, rows) that turns the centred signals (rows, M) into K of mean 0 and covariance 1, uncorrelated.

    By the eigenvalues of the covariance, the `count` largest; K is smaller if fewer are above rounding (TOLERANCE).
    In float64. Raises ValueError if there is nothing but constants.
    """
    centred = signals.double() - signals.double().mean(1, keepdim=True)
    rows, columns = centred.shape
    if rows <= columns:
        values, vectors = torch.linalg.eigh(centred @ centred.T / columns)
    else:  # the smaller of the two products has the same eigenvalues
        values, right = torch.linalg.eigh(centred.T @ centred / columns)
        vectors = centred @ right / (values.clamp_min(1e-300) * columns).sqrt()
    values, vectors = values[-count:], vectors[:, -count:]
    kept = values > TOLERANCE * values[-1]
    if not bool(values[-1] > 0):
        raise ValueError("the signals do not vary")
    return (vectors[:, kept] / values[kept].sqrt()).T


def edges(values: Tensor, shape: Shape) -> Tensor:
    """Differences between neighbouring pixels, (N, in) -> (N, M): across, then down. `in` is C * H * W."""
    maps = values.reshape(len(values), *shape)
    across, down = maps[..., :, 1:] - maps[..., :, :-1], maps[..., 1:, :] - maps[..., :-1, :]
    return torch.cat([across.flatten(1), down.flatten(1)], 1)


def mix(weight: Tensor, bias: Tensor | None, count: int, shape: Shape | None, domain: str) -> Mixture:
    """The gradient of a layer's weight (out, in) and bias (out,) -> a mixture of at most `count` components, float64.

    shape: (C, H, W) of an input that is an image or feature maps, else None. domain: `values` whitens the inputs
    themselves, as the paper does; `edges` whitens their edges. Photographs that have nothing to do with one another are
    bright in the same places (their values are correlated by 0.1 to 0.5) but their edges lie apart, and edges are
    sparse (Zibulevsky & Pearlmutter, Neural Computation 2001).
    """
    weight = weight.double().cpu()
    first = whitening(weight, count)
    values = first @ weight
    matrix = first
    if domain == "edges" and shape is not None:
        second = whitening(edges(values, shape), count)
        matrix, values = second @ first, second @ values
        white = edges(values, shape)
    else:
        white = values
    white = white - white.mean(1, keepdim=True)
    sparse = values if shape is None else edges(values, shape)
    return Mixture(white, values, sparse, None if bias is None else matrix @ bias.double().cpu())


def negentropy(signals: Tensor) -> Tensor:
    """(E[log cosh s] - E[log cosh v])^2, v ~ N(0, 1), of each row (K, M) of mean 0 and variance 1 (Hyvarinen 1999)."""
    size = signals.abs()
    # log cosh s = |s| + log(1 + exp(-2 |s|)) - log 2, which does not overflow
    mean = (size + F.softplus(-2 * size) - math.log(2)).mean(1)
    return (mean - NORMAL_LOGCOSH).square()


def alikeness(rows: Tensor, temperature: float) -> Tensor:
    """The mean over pairs i != j of exp(T |cos(u_i, u_j)|) - 1, of unit rows u (K, K): the mutual independence prior.

    0 for orthogonal rows, and for a single one.
    """
    count = len(rows)
    cosines = (rows @ rows.T).abs()
    apart = cosines[~torch.eye(count, dtype=torch.bool, device=rows.device)]
    return torch.expm1(temperature * apart).sum() / max(count * (count - 1), 1)


def outside(values: Tensor, scale: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    """The mean of how far values / scale is outside [low, high], times |scale|: a scalar, 0 for valid inputs.

    values: (K, in). scale: (K,). low <= 0 <= high, of any shape that fits `values`; None: no bound.
    Times |scale|, because that is continuous where a scale passes through 0. With low = 0 it is the paper's sign prior.
    """
    size, facing = scale.abs()[:, None], torch.where(scale >= 0, 1.0, -1.0).to(values)[:, None] * values
    total = values.new_zeros(())
    if low is not None:
        total = total + (low * size - facing).relu().mean()
    if high is not None:
        total = total + (facing - high * size).relu().mean()
    return total


@dataclass(frozen=True)
class Separation:
    """What is minimised over the rows of the unmixing matrix.

    low, high: the range of valid inputs, None where it has no end.
    """

    mixture: Mixture
    weights: Weights
    low: Tensor | None
    high: Tensor | None

    def value(self, matrix: Tensor, way: float) -> Tensor:
        """The objective at `way` (0 to 1) of the search, a scalar. matrix: (K, K), its rows of any length.

        tv * 2 mean |edges| - negentropy * J + decorrelation * relax^way * alikeness + box * way^2 * outside.
        The rows are driven apart first; once each has a source of its own, they may tilt to what the sources' true
        correlation is, and the range of valid values, which traps a poor matrix, polishes a good one.
        """
        mixture, weights = self.mixture, self.weights
        rows = F.normalize(matrix, dim=1)
        total = 2 * weights.tv * (rows @ mixture.sparse).abs().mean()
        if weights.negentropy > 0:
            total = total - weights.negentropy * negentropy(rows @ mixture.white).mean()
        if weights.decorrelation > 0:
            total = total + weights.decorrelation * weights.relax**way * alikeness(rows, weights.temperature)
        if weights.box > 0 and way > 0 and mixture.bias is not None:
            beyond = outside(rows @ mixture.values, rows @ mixture.bias, self.low, self.high)
            total = total + weights.box * way**2 * beyond
        return total


@dataclass(frozen=True)
class Unmixed:
    """matrix: (K, K), rows of length 1. objective: at the end. history: (step, objective)."""

    matrix: Tensor
    objective: float
    history: tuple[tuple[int, float], ...]


def unmix(
    problem: Separation, start: Tensor, iterations: int, step_size: float, tick: Callable[[int, float], None]
) -> Unmixed:
    """Adam on the unmixing matrix, its step falling to 0 along a half cosine. tick(step, objective): for progress."""
    matrix, history = start.clone().requires_grad_(True), []
    adam = torch.optim.Adam([matrix], lr=step_size)
    for step in range(iterations):
        adam.param_groups[0]["lr"] = step_size * 0.5 * (1 + math.cos(math.pi * step / iterations))
        value = problem.value(matrix, step / iterations)
        (matrix.grad,) = torch.autograd.grad(value, matrix)
        if step % LOOK_EVERY == 0:
            history.append((step, float(value.detach())))
            tick(*history[-1])
        adam.step()
    matrix = F.normalize(matrix.detach(), dim=1)
    objective = float(problem.value(matrix, 1.0))
    return Unmixed(matrix, objective, (*history, (iterations, objective)))


def random_rotation(count: int, rng: torch.Generator) -> Tensor:
    """An orthogonal matrix (count, count) in float64, on the CPU."""
    return torch.linalg.qr(torch.randn(count, count, generator=rng, dtype=torch.float64))[0]


def scaled_by_bias(values: Tensor, scale: Tensor) -> Tensor:
    """Unmixed values (K, in) -> inputs, by the same combinations of the bias's gradient (K,): x = (v G) / (v g_b)."""
    tiny = torch.finfo(scale.dtype).tiny
    return values / torch.where(scale.abs() < tiny, torch.full_like(scale, tiny), scale)[:, None]


def scaled_to_box(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Unmixed values (K, in) -> inputs, without the bias: the sign and the scale of most contrast within the box.

    low <= 0 <= high, of any shape that fits `values`. A guess: an input that leaves the box unfilled comes out
    with too much contrast, and one that is about as far below the mean as above may come out inverted.
    """
    low, high = torch.minimum(low, -0.05 * high), torch.maximum(high, -0.05 * low)  # a bound of 0 would divide by 0
    up = torch.maximum(values / high, values / low).amax(1)
    down = torch.maximum(-values / high, -values / low).amax(1)
    scale = torch.where(up <= down, up, -down)
    return scaled_by_bias(values, scale)
