"""From the gradients of a vision transformer's first self-attention to the patches of a single image, in closed form.

Notation, for one image: T tokens of D numbers, patches of P pixels. z_t = E x_t + p_t is what patch t contributes, with
the patch embedding's weight E (D, P), the patch x_t, and the rest p_t of the token (embedding bias and position
embedding); token 0 is z_0 = class token + position embedding, known. Z (T, D) has the rows z_t. Queries, keys and
values are linear in the attention's input Y, of rows y_t: Q = Y W_Q' + b_Q and so on (' is the transpose). L is the
loss, dQ (T, D) its gradient with respect to Q, and so on. Then

    dL/dW_Q = dQ' Y,   dL/dW_K = dK' Y,   dL/dW_V = dV' Y                                                       (1)

whatever the biases are. Two ways lead on from here.

Embedding (the closed-form attack of Lu et al., "APRIL", CVPR 2022). Where the attention reads the embedding itself,
Y = Z, and nothing else reads it (no residual connection around the attention), the chain rule gives

    dL/dZ = dQ W_Q + dK W_K + dV W_V =: G                                                                       (2)
    G' Z = W_Q' dQ' Z + W_K' dK' Z + W_V' dV' Z = W_Q' dL/dW_Q + W_K' dL/dW_K + W_V' dL/dW_V =: B   by (1)       (3)

G is seen: the position embedding is added to the tokens, so its gradient is dL/dZ. (3) is linear in Z with D equations
for each of its columns; it determines Z if G has rank T, hence D >= T. Put in what is known of Z, with K (T, D) of the
rows z_0, p_1, ..., p_{T-1}, and without row 0 of G, which meets only the known z_0:

    G_{1:}' X E' = B - G' K =: R                                                                                (4)

which also determines X (T-1, P), the patches, if E has rank P, hence D >= P. With a residual connection the gradient
of the position embedding is G + S, S being the gradient of what the attention's output is added to. B then lacks the
term S' Z, which no weight's gradient gives: (3) does not hold, and there is no closed form along this way.

Span (derived for fedsim; the idea that a weight gradient's rows span the layer's inputs is that of DAGER, Petrov et
al., NeurIPS 2024, who use it to test tokens of text against a vocabulary). By (1) the row space of the three gradients
lies in the span of the y_t, and is that span if [dQ dK dV] has rank T. It does not matter what else reads Z. With N
an orthonormal basis (D, D-T) of its complement, N' y_t = 0, and for Y = Z

    N' E x_t = -N' p_t   for every patch t                                                                      (5)

P unknowns and D - T equations each; x_t is determined if N' E has rank P, hence D >= P + T. A residual connection
changes nothing in (5). Nor does a LayerNorm before the attention, y_t = g * (z_t - mean z_t) / s_t + b with weight g,
bias b and the unknown spread s_t: g * (z_t - mean z_t) = s_t (y_t - b) lies in the span of y_t and b, so that (5)
holds with g * (E - its columns' means) for E, g * (p_t - mean p_t) for p_t, and N orthogonal to b as well. The row of
the class token, and b, are known exactly, and are taken as given when the span is estimated.

Both need gradients with T independent directions. They have few where the image is bland, and at depth 1: there the
loss depends on the other tokens through keys and values of the class token's query alone, 2 directions a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Solution:
    """patches: (T-1, P), float64, normalised pixels by channel, row, column.
    residual: what the equations leave, relative to their right-hand side; about 0 for an undefended gradient.
    condition: how much the equations enlarge an error in the gradient: largest by smallest singular value, in (4) of
    G_{1:}, in (5) of the gradients within the span.
    """

    patches: Tensor
    residual: float
    condition: float


@dataclass(frozen=True)
class Embedding:
    """What is known of a token: E (D, P), p (T-1, D) and z_0 (D,); see the module. Float64."""

    weight: Tensor
    rest: Tensor
    first: Tensor


def embedding(parameters: Mapping[str, Tensor]) -> Embedding:
    """E, p and z_0 of a `fedsim.models.vit.VisionTransformer` with these parameters."""
    known = {name: parameters[name].double() for name in ("embed.weight", "embed.bias", "class_token", "position")}
    position = known["position"][0]
    return Embedding(
        known["embed.weight"], position[1:] + known["embed.bias"], known["class_token"][0, 0] + position[0]
    )


def through_layer_norm(known: Embedding, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Embedding, Tensor]:
    """The embedding as it appears behind a LayerNorm, up to each token's spread, and the vectors (2, D) that are known
    to lie in the span: the class token's normalised row and `bias`. weight, bias: (D,), of the LayerNorm.
    """
    weight, bias = weight.double(), bias.double()
    centred = known.first - known.first.mean()
    first = weight * centred / (centred.square().mean() + epsilon).sqrt() + bias
    behind = Embedding(
        weight[:, None] * (known.weight - known.weight.mean(dim=0)),
        weight * (known.rest - known.rest.mean(dim=1, keepdim=True)),
        first,
    )
    return behind, torch.stack([first, bias])


def from_embedding_gradient(
    gradient: Tensor, weights: list[Tensor], weight_gradients: list[Tensor], known: Embedding
) -> Solution:
    """Damped least squares of (4).

    gradient: G (T, D). weights: W_Q, W_K, W_V (D, D). weight_gradients: dL/dW of each.
    """
    gradient = gradient.double()
    given = torch.cat([known.first[None], known.rest])
    right = sum(weight.double().T @ slope.double() for weight, slope in zip(weights, weight_gradients, strict=True))
    right = right - gradient.T @ given
    # Both factors by their singular values: the unknowns come apart into (T-1) * P independent ones.
    left_u, left_s, left_v = torch.linalg.svd(gradient[1:].T, full_matrices=False)
    embed_u, embed_s, embed_v = torch.linalg.svd(known.weight, full_matrices=False)
    patches, residual = _damped(left_u.T @ right @ embed_u, left_s[:, None] * embed_s, right)
    return Solution(left_v.T @ patches @ embed_v, residual, _ratio(left_s, len(left_s)))


def _ratio(singular: Tensor, rank: int) -> float:
    """The largest by the `rank`-th singular value."""
    return float(singular[0] / singular[rank - 1].clamp(min=torch.finfo(singular.dtype).tiny))


def from_span(weight_gradients: list[Tensor], known: Embedding, given: Tensor) -> Solution:
    """Damped least squares of (5).

    weight_gradients: dL/dW_Q, dL/dW_K, dL/dW_V (D, D). given: (K, D), what is known to lie in the span: the row of the
    class token and, behind a LayerNorm, its bias; rows of zeros are passed over.
    """
    found = span(weight_gradients, given, rank=len(known.rest))  # without the class token, which is given
    left, right = found.complement.T @ known.weight, -(found.complement.T @ known.rest.T)
    u, s, vh = torch.linalg.svd(left, full_matrices=False)
    patches, residual = _damped(u.T @ right, s[:, None], right)
    return Solution((vh.T @ patches).T, residual, found.condition)


def _damped(inside: Tensor, scale: Tensor, right: Tensor) -> tuple[Tensor, float]:
    """`inside` / `scale`, the least-squares solution in the coordinates of the singular vectors, and the relative size
    of the part of `right` that it leaves.

    That part is what the noise of the gradient left in the redundant equations, and so says how large the noise is.
    Directions that it drowns are damped rather than divided by next to nothing: this is the posterior mean for
    normalised pixels of variance 1. Without noise, and without redundant equations, it is plain least squares.
    """
    redundant = right.numel() - inside.numel()
    missed = (right.square().sum() - inside.square().sum()).clamp(min=0)
    noise = missed / redundant if redundant else missed.new_zeros(())
    tiny = torch.finfo(scale.dtype).tiny
    return inside * scale / (scale.square() + noise).clamp(min=tiny), float((missed / right.square().sum()).sqrt())


@dataclass(frozen=True)
class Span:
    """complement: (D, D - r), an orthonormal basis of what is orthogonal to the span of dimension r.
    condition: the largest by the smallest singular value of the gradients within the span, without what was given.
    """

    complement: Tensor
    condition: float


def span(weight_gradients: list[Tensor], given: Tensor, rank: int) -> Span:
    """The space spanned by `given` (K, D) and, outside it, by the `rank` strongest directions of the gradients' rows.

    Every row is first divided by its length: rounding in float32 leaves an error in proportion to a row's length, so
    that this makes the error the same everywhere and the strongest directions the best estimate. It matters: the
    gradient of W_V is large and nearly of rank 1, and its rounding would bury the others.
    """
    rows = torch.cat(weight_gradients).double()
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    given = given.double()[given.norm(dim=1) > 0]
    rest = torch.linalg.svd(given, full_matrices=True).Vh[len(given) :]  # an orthonormal basis of what is not given
    _, singular, directions = torch.linalg.svd(rows @ rest.T, full_matrices=False)  # 3 D rows: all directions
    return Span((directions[rank:] @ rest).T, _ratio(singular, rank))
