"""InstaHide: train on mixtures of images whose pixels have random signs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fedsim.clients.defenses import mixing, public
from fedsim.errors import InputError, SettingError
from fedsim.settings import Fraction

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedsim.clients.defenses.base import Mixed, Pool
    from fedsim.protocol import Batch

_OWNER = "defense instahide"
_PRIVATE = 2
"""Private images in a mixture with public ones."""


@dataclass(frozen=True)
class InstaHide:
    """Mixes images as `mixup` does, then gives every entry of the normalised mixture a random sign.

    Source: Huang et al. (ICML 2020); without public images as in Huang et al. (NeurIPS 2021, Intra-InstaHide). Carlini
    et al. (2020) break it, given many encodings of the same images. Partners, coefficients and signs are drawn anew for
    every batch.

    With `public` (Inter-InstaHide; "cross-dataset" in the first paper), two of the k images are private, the image
    itself and one other of the client, and k - 2 public ones. A label is then c1 y1 + c2 y2 over the private images,
    with their coefficients as drawn, not rescaled: it sums to c1 + c2, at least `private_share`, and below 1, as in
    the code that its authors published. Public images carry no label, and are normalised like private ones.

    k: images in a mixture, the image itself included; with `public`, 3 at least.
    law, upper: of the coefficients, as for mixup.
    public: a data set as an experiment's [data] names it, `digits` or `npz:PATH`; its training images are used, and
        must be of the size of the private ones. None: all k images are the client's own.
    private_share: with `public`, the least sum of the two private coefficients; others are redrawn.
    """

    k: Annotated[int, Field(ge=2)] = 4
    law: mixing.Law = "dirichlet"
    upper: Fraction = 0.65
    public: str | None = None
    private_share: Fraction = 0.3

    def check(self) -> None:
        """Raises SettingError for bounds that no coefficients meet, or for a public data set that is not there."""
        mixing.check_upper(_OWNER, self.k, self.upper)
        if self.public is None:
            return
        if self.k <= _PRIVATE:
            raise SettingError(
                _OWNER, "k", f"with public images it must be at least {_PRIVATE + 1}, as {_PRIVATE} are private"
            )
        highest = min(1.0, _PRIVATE * self.upper)
        if self.private_share >= highest:
            raise SettingError(
                _OWNER,
                "private_share",
                f"{_PRIVATE} coefficients of at most {self.upper} beside public ones never sum to "
                f"{self.private_share}; it must be below {highest:g}",
            )
        try:
            public.data_set(self.public)
        except SettingError as error:
            raise SettingError(_OWNER, "public", error.problem) from error
        except InputError as error:
            raise SettingError(_OWNER, "public", str(error)) from error

    def images_needed(self) -> int:
        """How many images a client must have."""
        return self.k if self.public is None else _PRIVATE

    def mix(self, batch: Batch, pool: Pool, rng: torch.Generator) -> Mixed:
        """The encoded batch: own images first in every row, public ones last, with index -1. In units of [0, 1] pixels,
        but not within that range.

        Raises InputError if the client or the public set has too few images, or if these are of another size, and what
        loading the public set raises.
        """
        private = self.images_needed()
        # Without public images all of them are private, and sum to 1.
        least = self.private_share if private < self.k else 0.0
        weights = mixing.coefficients(len(batch), self.k, self.law, self.upper, rng, private=private, least=least)
        mixed = mixing.blend(_OWNER, batch, pool, weights[:, :private], rng)
        if self.public is not None:
            mixed = _with_public(mixed, self.public, weights, rng)
        encoded = pool.normalise.inverse(mixing.flip_signs(pool.normalise(mixed.batch.images), rng))
        return replace(mixed, batch=replace(mixed.batch, images=encoded))


def _with_public(mixed: Mixed, name: str, weights: Tensor, rng: torch.Generator) -> Mixed:
    """The mixture of the private images with public ones added to it. weights: (N, k), all of them."""
    import torch

    images = mixed.batch.images
    count, extra = len(images), weights.shape[1] - mixed.coefficients.shape[1]
    size = len(public.public_images(name))
    if size < extra:
        raise InputError(f"{_OWNER}: public: '{name}' has {size} training image(s), but {extra} are mixed; lower k")
    positions = mixing.distinct(torch.empty(count, 0, dtype=torch.int64), size, extra, rng)
    others = public.take(_OWNER, name, positions.flatten(), tuple(images.shape[1:])).to(images)
    added = mixing.weighted(weights[:, -extra:], others.unflatten(0, (count, extra)))
    indices = torch.cat([mixed.indices, torch.full((count, extra), -1)], dim=1)
    return replace(mixed, batch=replace(mixed.batch, images=images + added), indices=indices, coefficients=weights)
