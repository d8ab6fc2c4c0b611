"""BatchNorm whose second derivative is written out.

Gradient inversion differentiates the gradient, and torch's own double backward of BatchNorm takes a third of the time
of such a step on a ResNet: it goes over the activations some forty times. Written out, per channel, with M values a
channel, r = 1 / sqrt(variance + eps), z = (x - mean) r, and y = w z + b:

    backward:         gb = sum gy,   gw = sum gy z,   gx = w r (gy - gb / M - z gw / M)
    through that:     with h = cotangents of (gx, gw, gb), A = sum hx, C = sum hx z, D = sum hx gy,
                      d/dgy = w r (hx - A / M - z C / M) + hw z + hb
                      d/dw  = r (D - gb A / M - gw C / M) =: r E
                      d/dx  = r (q - sum q / M - z sum(q z) / M) - w E r^2 z / M,
                      q     = -w r / M (gy C + hx gw) + hw gy

so every result is a combination of gy, hx, z and 1 with factors that only the channel determines, and three sums are
all that is needed. With fixed statistics the terms with 1 / M are absent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def normalise(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float, own: bool) -> Tensor:
    """BatchNorm of x (N, C, ...) by `mean` and `variance` (biased), (C,) each.

    own: whether these are x's own, and so move with it; otherwise they are constants. Differentiable twice by x, weight
    and bias, also under `torch.func` transforms. No derivative goes through `mean` and `variance` themselves.
    """
    return _Normalise.apply(x, mean, torch.rsqrt(variance + eps), weight, bias, own)


def _wide(value: Tensor, x: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...)."""
    return value.reshape(1, -1, *([1] * (x.dim() - 2)))


def _total(x: Tensor) -> Tensor:
    """The sum of each channel, (C,)."""
    return x.sum([d for d in range(x.dim()) if d != 1])


class _Normalise(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mean: Tensor, r: Tensor, weight: Tensor, bias: Tensor, own: bool) -> Tensor:
        scale = r * weight
        return x * _wide(scale, x) + _wide(bias - mean * scale, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, mean, r, weight, _, own = inputs
        ctx.save_for_backward(x, mean, r, weight)
        ctx.own = own

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        gx, gw, gb = _Backward.apply(gy, *ctx.saved_tensors, ctx.own)
        return gx, None, None, gw, gb, None


class _Backward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        gy: Tensor, x: Tensor, mean: Tensor, r: Tensor, weight: Tensor, own: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        gb = _total(gy)
        gw = (_total(gy * x) - mean * gb) * r
        scale = weight * r
        if not own:
            return gy * _wide(scale, x), gw, gb
        count = x.numel() // x.shape[1]
        by_x = -scale * r * gw / count
        by_one = -scale * gb / count - by_x * mean
        return _combine(x, [(scale, gy), (by_x, x)], by_one), gw, gb

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        gy, x, mean, r, weight, own = inputs
        ctx.save_for_backward(gy, x, mean, r, weight, output[1], output[2])
        ctx.own = own

    @staticmethod
    def backward(ctx: Any, hx: Tensor, hw: Tensor, hb: Tensor) -> tuple[Any, ...]:
        gy, x, mean, r, weight, gw, gb = ctx.saved_tensors
        d = _total(hx * gy)
        if not ctx.own:
            to_gy = _combine(x, [(weight * r, hx), (hw * r, x)], hb - hw * r * mean)
            return to_gy, _wide(r * hw, x) * gy, None, None, r * d, None
        count = x.numel() // x.shape[1]
        a = _total(hx)
        c = (_total(hx * x) - mean * a) * r
        scale = weight * r
        by_z = hw - scale * c / count
        to_gy = _combine(x, [(scale, hx), (by_z * r, x)], hb - scale * a / count - by_z * r * mean)
        e = d - gb * a / count - gw * c / count
        # q = by_gy gy + by_hx hx
        by_gy, by_hx = hw - scale * c / count, -scale * gw / count
        sum_q = by_gy * gb + by_hx * a
        sum_qz = by_gy * gw + by_hx * c
        z_factor = -r * sum_qz / count - weight * e * r * r / count
        one = -r * sum_q / count - z_factor * r * mean
        to_x = _combine(x, [(r * by_gy, gy), (r * by_hx, hx), (z_factor * r, x)], one)
        return to_gy, to_x, None, None, r * e, None


def _combine(x: Tensor, terms: list[tuple[Tensor, Tensor]], one: Tensor) -> Tensor:
    """one + the sum of factor * tensor, the factors by channel."""
    out = _wide(one, x)
    for factor, value in terms:
        out = torch.addcmul(out, value, _wide(factor, x))
    return out
