"""Where R-GAP starts: the loss's slope at the logits, and the features, from the last layer's gradient of one example.

With softmax cross-entropy the slope is d = softmax(W a + b) - y, and the weight's gradient is d a^T.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from fedsim.adversaries.inversion.closed_form.rgap_layers import Array

GRID = 4000
"""Scales that are tried before the best ones are refined, evenly in their logarithm."""

SMALLEST = 1e-9
"""The smallest scale that is tried, against the largest: an example that the model has learnt better gives next to no
gradient in float32.
"""

CANDIDATES = 4
"""Each costs a whole recursion. More than one come up with two classes, or if the gradient is noise."""


@dataclass(frozen=True)
class Head:
    """What the last layer says.

    slope: (classes,), d. features: (in,), a. target: (classes,), y = softmax(W a + b) - d.
    misfit: relative, near 0 if all is right: how far the gradient seen is from d a^T, or, without a bias, d from what
        the label and the logits say.
    """

    slope: Array
    features: Array
    target: Array
    misfit: float

    @property
    def label(self) -> int:
        """The only class whose slope is below 0 (Zhao et al. 2020)."""
        return int(self.slope.argmin())


def from_bias(weight: Array, bias: Array, weight_gradient: Array, bias_gradient: Array) -> list[Head]:
    """With a bias there is one answer: the bias's gradient is d, and a follows by least squares. The label may be soft.

    weight and weight_gradient: (classes, in). Nothing if the gradient is zero.
    """
    slope = bias_gradient
    power = float(slope @ slope)
    if power == 0:
        return []
    features = weight_gradient.T @ slope / power
    target = softmax(weight @ features + bias) - slope
    misfit = np.linalg.norm(weight_gradient - np.outer(slope, features)) / np.linalg.norm(weight_gradient)
    return [Head(slope, features, target, float(misfit))]


def from_weight(weight: Array, weight_gradient: Array) -> list[Head]:
    """Without a bias, d a^T = (t u) (s v / t)^T leaves one unknown number t > 0: the length of d.

    u, s and v are the first singular triple of the gradient. The label is where u has the other sign: |d| is largest
    there, as all of d sums to 0. Of two classes either may be it. Then t is where softmax(W v s / t) - y = t u holds,
    which is one equation more for each class than is needed from three classes on. Of two classes there may be two
    solutions (the paper's section on the uniqueness of mu), and nothing in a network without biases tells them apart.

    Returns all t that fit about as well as the best, best first, at most `CANDIDATES`. Nothing if the gradient is zero.
    """
    left, sizes, right = np.linalg.svd(weight_gradient, full_matrices=False)
    if sizes[0] == 0:
        return []
    labels = (0, 1) if len(left) == 2 else (int(np.abs(left[:, 0]).argmax()),)
    found = []
    for label in labels:
        if left[label, 0] == 0:
            continue
        sign = -np.sign(left[label, 0])
        direction, features = sign * left[:, 0], sign * sizes[0] * right[0]
        logits = weight @ features
        for scale, misfit in _scales(logits, direction, label):
            target = softmax(logits / scale) - scale * direction
            found.append(Head(scale * direction, features / scale, target, misfit))
    found.sort(key=lambda head: head.misfit)
    return [head for head in found if head.misfit <= max(10 * found[0].misfit, 1e-6)][:CANDIDATES]


def _scales(logits: Array, direction: Array, label: int) -> list[tuple[float, float]]:
    """The local minima over t of |(softmax(logits / t) - y) / t - direction|, with their values.

    t is at most 1 / -direction[label], where the label's probability would be 0. Dividing by t leaves no minimum at
    t = 0, where both sides of the equation vanish.
    """

    def misfit(logarithm: float) -> float:
        scale = np.exp(logarithm)
        logs = log_softmax(logits / scale)
        others = np.exp(logs)
        others[label] = 0
        others[label] = -others.sum()  # softmax - 1 without cancellation
        return float(np.linalg.norm(others / scale - direction))

    largest = -np.log(-direction[label])
    grid = np.linspace(largest + np.log(SMALLEST), largest, GRID)
    values = np.array([misfit(one) for one in grid])
    out = []
    for place in range(1, GRID):
        # The last point counts as a minimum: a certainly wrong prediction has t at its end.
        if values[place] <= values[place - 1] and (place == GRID - 1 or values[place] < values[place + 1]):
            bounds = (grid[place - 1], grid[min(place + 1, GRID - 1)])
            best = minimize_scalar(misfit, bounds=bounds, method="bounded", options={"xatol": 1e-14, "maxiter": 200})
            out.append((float(np.exp(best.x)), float(best.fun)))
    return out
