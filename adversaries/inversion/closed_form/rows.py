"""The rows of a fully connected layer's gradient, divided by the bias gradient.

Layer z = W x + b, batch x_1 ... x_N, and d_ji the derivative of the loss by z_j of image i. Then
    dL/dW_j = sum_i d_ji x_i   and   dL/db_j = sum_i d_ji,
so a row of the one over the other is the mean of the inputs weighted by d_j. Where a single d_ji is not zero it is x_i.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quotients(weight: Tensor, bias: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Every row of dL/dW over its dL/db.

    weight: (m, n). bias: (m,). least: rows whose |dL/db| is at most this share of the largest are left out.
    Returns (r, n), the quotients, and (r,) int64, the numbers of their rows.
    """
    size = bias.abs()
    rows = torch.nonzero((size > least * size.max()) & (size > 0)).flatten()
    return weight[rows] / bias[rows, None], rows


def one_input(weight: Tensor, bias: Tensor) -> Tensor:
    """The single input x that explains dL/dW = dL/db x^T best, in least squares: (n,).

    It is the mean of all quotients weighted by (dL/db)^2, so that no row with a small divisor spoils it. Entries of
    dL/dW that are exactly zero do not count: where the pixel is not zero itself they were pruned. Zero where nothing is
    left.
    """
    power = (weight != 0).to(weight.dtype).T @ bias.square()
    return torch.where(power > 0, weight.T @ bias / power, 0)


def agreeing(inputs: Tensor, tolerance: float) -> list[Tensor]:
    """Groups of rows that agree, the largest first; rows that agree with none form groups of one.

    inputs: (r, n). tolerance: two rows agree whose root mean square difference is at most this. A group is the row with
    the most neighbours among those left, and these neighbours. Returns the groups as int64 indices into `inputs`.
    """
    count, width = inputs.shape
    # In blocks: the distances of many rows need eight times the room of the answers.
    blocks = [torch.cdist(block, inputs) <= tolerance * width**0.5 for block in inputs.split(1024)]
    near = torch.cat(blocks).fill_diagonal_(True)
    left = torch.ones(count, dtype=torch.bool, device=inputs.device)
    groups: list[Tensor] = []
    neighbours = near.sum(1)
    while left.any():
        middle = int(torch.where(left, neighbours, -1).argmax())
        if int(neighbours[middle]) <= 1:
            groups.extend(torch.nonzero(left).unbind())
            break
        group = torch.nonzero(near[middle] & left).flatten()
        groups.append(group)
        left[group] = False
        neighbours = neighbours - near[:, group].sum(1)
    return groups


def unexplained(weight: Tensor, bias: Tensor, inputs: Tensor) -> Tensor:
    """What is left of each row of [dL/dW, dL/db] after the best combination of the rows [x_i, 1]: (m, n + 1).

    weight: (m, n). bias: (m,). inputs: (k, n), k from 0. All zero if the inputs are those of the batch.
    """
    rows = torch.cat([weight, bias[:, None]], 1)
    if len(inputs) == 0:
        return rows
    base = torch.linalg.qr(torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1).T)[0]
    return rows - rows @ base @ base.T


def outside(inputs: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How far each input leaves the box of valid pixels, as the mean over its pixels: (r,), 0 inside.

    inputs: (r, n). low, high: (n,), the least and the greatest value of a pixel, in the same units.
    """
    return ((low - inputs).clamp(min=0) + (inputs - high).clamp(min=0)).mean(1)


def candidates(
    weight: Tensor, bias: Tensor, count: int, low: Tensor, high: Tensor, tolerance: float, least: float
) -> tuple[Tensor, list[int]]:
    """Inputs that may be those of the batch, (k, n) with k <= count, and how many rows agree on each.

    First the inputs on which several rows agree, most rows first, as long as each explains something new. The rest are
    single quotients, valid images before others: time and again the one farthest from what those so far can be combined
    to. With weights of one sign mixtures lie within the hull of the images, of which this finds the corners (the
    successive projection algorithm, Araujo et al. 2001), if a row is there: a neuron active for one image alone.
    low, high: (n,), the box of valid pixels. tolerance: see `agreeing`. least: see `quotients`.
    """
    values, rows = quotients(weight, bias, least)
    chosen: list[Tensor] = []
    agree: list[int] = []
    groups = agreeing(values, tolerance) if len(values) else []
    for group in groups:
        if len(group) < 2 or len(chosen) == count:
            break
        where = rows[group]
        # Within a group the rows are those of a single input.
        value = one_input(weight[where], bias[where])
        if _is_new(value, chosen, tolerance):
            chosen.append(value)
            agree.append(len(group))
    valid = outside(values, low, high) <= tolerance * (high - low).mean()
    while len(chosen) < count and len(values):
        taken = torch.stack(chosen) if chosen else values[:0]
        left = unexplained(values, values.new_ones(len(values)), taken).norm(dim=1)
        fresh = left > 10 * tolerance * values.shape[1] ** 0.5
        if not fresh.any():
            break
        eligible = fresh & valid if (fresh & valid).any() else fresh
        chosen.append(values[int(torch.where(eligible, left, -1).argmax())])
        agree.append(1)
    return torch.stack(chosen) if chosen else weight[:0], agree


def _is_new(value: Tensor, chosen: list[Tensor], tolerance: float) -> bool:
    """Whether it is more than a combination of those chosen."""
    if not chosen:
        return True
    left = unexplained(value[None], value.new_ones(1), torch.stack(chosen))
    return bool(left.norm() > 10 * tolerance * value.numel() ** 0.5)
