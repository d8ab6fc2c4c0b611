"""Places to perturb an update at, for tests of defenses. No test is in here."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedsim.clients.defenses.base import Site
from fedsim.data.dataset import Normalisation
from fedsim.protocol import Batch

NORMALISE = Normalisation((0.3, 0.4), (0.2, 0.5))
SHAPE = (2, 6, 6)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 3, seed: int = 5) -> Batch:
    draws = rng(seed)
    return Batch(torch.rand(count, *SHAPE, generator=draws), torch.randint(4, (count,), generator=draws))


def site(
    model: nn.Module | None = None,
    batches: tuple[Batch, ...] = (),
    memory: Mapping[str, Tensor] | None = None,
    round_: int = 1,
) -> Site:
    """With the model's own parameters as the broadcast ones."""
    model = model or nn.Identity()
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    return Site(round_, model, parameters, batches, NORMALISE, memory or {})
