"""Sign compression: one bit of each entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedsim.errors import SettingError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedsim.clients.defenses.base import Site
    from fedsim.protocol import Update


@dataclass(frozen=True)
class SignCompression:
    """Replaces every entry by its sign; sign(0) = 0.

    Source: signSGD, Bernstein et al. (ICML 2018), for the plain sign; EF-SGD, Karimireddy et al. (ICML 2019), algorithm
    1, for the scaled sign with error feedback, there over the whole vector and here for each tensor.

    scale: `mean`, each tensor's sign times the mean of its |g|, of all such multiples the nearest to g; `none`, the
        sign alone: an update of -1, 0 and 1, for which the server's learning rate has to be chosen.
    error_feedback: whether what is left out of an update is added to the next. Only with `scale = "mean"`.
    """

    scale: Literal["mean", "none"] = "mean"
    error_feedback: bool = False

    def check(self) -> None:
        """Raises SettingError for error feedback on the plain sign, which is not near g in any sense."""
        if self.error_feedback and self.scale == "none":
            raise SettingError(
                "defense sign_compression",
                "error_feedback",
                'needs a sign with a size; set scale = "mean", or leave error_feedback out',
            )

    def perturb_at(self, update: Update, site: Site, rng: torch.Generator) -> tuple[Update, Mapping[str, Tensor]]:
        """The compressed update, and with error feedback the residuals."""
        from fedsim.clients.defenses.feedback import compressed

        return compressed(update, site.memory, self._compress, self.error_feedback)

    def _compress(self, g: Tensor) -> Tensor:
        return g.sign().mul_(g.abs().mean()) if self.scale == "mean" else g.sign()
