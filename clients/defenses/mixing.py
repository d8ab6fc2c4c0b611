"""The pieces of an encoding that mixes images: coefficients, partners, the mixture, random signs. All are pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fedsim.errors import InputError, SettingError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedsim.clients.defenses.base import Mixed, Pool
    from fedsim.protocol import Batch

Law = Literal["dirichlet", "half_normal"]
"""dirichlet: Dirichlet(3, 1, ..., 1), the 3 for the image itself (Huang et al., NeurIPS 2021). half_normal: |N(0, 1)|,
divided by the sum (InstaHide, Huang et al., ICML 2020). Either is redrawn until no coefficient exceeds a bound."""

OWN_CONCENTRATION = 3
"""The Dirichlet law's parameter of the image itself; that of the others is 1."""

_BLOCK = 1024
_BLOCKS = 1000
"""Rows that are drawn at once, at least, and how often before bounds count as hopeless."""


def check_upper(owner: str, k: int, upper: float) -> None:
    """Raises SettingError where k coefficients that sum to 1 cannot, or can only by all being equal, be at most `upper`
    (a continuous law never draws that).
    """
    if k * upper <= 1:
        raise SettingError(
            owner,
            "upper",
            f"{k} coefficients that sum to 1 are never drawn with all of them at most {upper}; "
            f"it must be above 1/{k}, such as {min(1.0, 1.3 / k):.2f}",
        )


def coefficients(
    count: int, k: int, law: Law, upper: float, rng: torch.Generator, *, private: int = 0, least: float = 0.0
) -> Tensor:
    """Mixing coefficients, float32 (count, k): rows that sum to 1 with no entry above `upper`, independent of each
    other, the image's own first.

    private, least: the first `private` entries of a row sum to `least` at least.
    Raises InputError if hardly any draw meets the bounds.
    """
    import torch

    size = max(_BLOCK, 2 * count)
    kept, found = [], 0
    # What a stream of independent draws keeps is again independent, so rows need not be redrawn one by one.
    for _ in range(_BLOCKS):
        block = _draw(size, k, law, rng)
        good = (block.amax(1) <= upper) & (block[:, :private].sum(1) >= least)
        kept.append(block[good])
        found += len(kept[-1])
        if found >= count:
            return torch.cat(kept)[:count].to(torch.float32)
    bound = f", and the first {private} summing to at least {least}" if least else ""
    raise InputError(
        f"mixing coefficients: only {found} of {size * _BLOCKS} draws of k = {k} ({law}) had none above "
        f"upper = {upper}{bound}; widen these bounds, or change k"
    )


def _draw(count: int, k: int, law: Law, rng: torch.Generator) -> Tensor:
    """Without the bounds; float64 (count, k)."""
    import torch

    if law == "half_normal":
        size = torch.randn(count, k, generator=rng, dtype=torch.float64).abs()
    else:
        # A Dirichlet vector is one of gamma variables divided by their sum; Gamma(3) is a sum of three exponentials.
        parts = torch.empty(count, OWN_CONCENTRATION + k - 1, dtype=torch.float64).exponential_(generator=rng)
        own = parts[:, :OWN_CONCENTRATION].sum(1, keepdim=True)
        size = torch.cat([own, parts[:, OWN_CONCENTRATION:]], dim=1)
    return size / size.sum(1, keepdim=True)


def distinct(taken: Tensor, size: int, count: int, rng: torch.Generator) -> Tensor:
    """For each row, `count` positions below `size`, in random order, none twice and none of those in the row of
    `taken`, uniformly; int64 (N, count).

    taken: int64 (N, m), m from 0 on, distinct in a row. The caller sees to it that m + count <= size.
    """
    import torch

    given = taken.shape[1]
    for _ in range(count):
        position = torch.randint(size - taken.shape[1], (len(taken),), generator=rng)
        # So far it counts the free positions alone; stepping over the taken ones, lowest first, makes it one of all.
        for passed in taken.sort(1).values.unbind(1):
            position = position + (position >= passed)
        taken = torch.cat([taken, position[:, None]], dim=1)
    return taken[:, given:]


def blend(owner: str, batch: Batch, pool: Pool, weights: Tensor, rng: torch.Generator) -> Mixed:
    """Each image of the batch, times its first weight, plus others of the client, drawn for it, times the other
    weights; labels alike. The weights (N, m) need not sum to 1, since public images may be added later.

    Raises InputError if the client has fewer than m images.
    """
    import torch

    from fedsim.clients.defenses.base import Mixed
    from fedsim.protocol import Batch

    count, m = weights.shape
    if pool.size < m:
        raise InputError(
            f"{owner}: a client has {pool.size} image(s), but mixes {m} different ones of its own; lower k, or give "
            "it more images (fewer clients, another partition or a larger data set)"
        )
    own = pool.positions.cpu()[:, None]
    partners = distinct(own, pool.size, m - 1, rng)
    others = pool.take(partners.flatten())
    images, labels = (
        torch.cat([mine[:, None], theirs.to(mine).unflatten(0, (count, m - 1))], dim=1)
        for mine, theirs in (
            (batch.images, others.images),
            (soft(batch.labels, pool.classes), soft(others.labels, pool.classes)),
        )
    )
    mixed = Batch(weighted(weights, images), weighted(weights, labels))
    return Mixed(mixed, torch.cat([own, partners], dim=1), weights)


def weighted(weights: Tensor, values: Tensor) -> Tensor:
    """sum_j weights[n, j] * values[n, j], for values (N, m, ...); (N, ...)."""
    import torch

    return torch.einsum("nm,nm...->n...", weights.to(values), values)


def soft(labels: Tensor, classes: int) -> Tensor:
    """Labels as weights of classes, float32 (N, classes); those that already are stay as they are."""
    import torch

    if labels.is_floating_point():
        return labels
    return torch.nn.functional.one_hot(labels, classes).to(torch.float32)


def flip_signs(values: Tensor, rng: torch.Generator) -> Tensor:
    """Each entry times +1 or -1, by an independent fair coin."""
    import torch

    coins = torch.randint(2, values.shape, generator=rng, dtype=torch.int8)
    return values * (2 * coins - 1).to(values)
