"""Put a client's defenses between a captured gradient and what an eavesdropper sees of it. No test is in here."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from fedsim.adversaries.base import Observation
from fedsim.adversaries.inversion.awareness import Place
from fedsim.adversaries.inversion.victim import rebuild
from fedsim.clients.defenses.base import Site
from fedsim.protocol import Batch, Update


def defend(seen: Observation, batch: Batch, *defenses: tuple[str, Any], seed: int = 1) -> Observation:
    """The observation after these defenses, by name and settings, which it then says it knows."""
    rng = torch.Generator().manual_seed(seed)
    update, victim = Update(seen.part("update")), rebuild(seen, torch.device("cpu"))
    site = Site(seen.round, victim.model, victim.parameters, [batch], victim.normalise)
    for _, one in defenses:
        if hasattr(one, "perturb_at"):
            update, _ = one.perturb_at(update, site, rng)
        else:
            update = one.perturb(update, rng)
    tensors = {**seen.tensors, **{f"update/{name}": value for name, value in update.tensors.items()}}
    known = [{"name": name, **dataclasses.asdict(one)} for name, one in defenses]
    return dataclasses.replace(seen, tensors=tensors, facts={**seen.facts, "defenses": known})


def length(seen: Observation) -> float:
    """Of the update, over all tensors together."""
    return float(Update(seen.part("update")).norm())


def typical(seen: Observation) -> float:
    """The root mean square of the update's entries."""
    return length(seen) / sum(value.numel() for value in seen.part("update").values()) ** 0.5


def place(target: list[Tensor], **changes: Any) -> Place:
    """Of an update of one image in one step."""
    names = [f"layer{number}.weight" for number in range(len(target))]
    usual: dict[str, Any] = {
        "unit": 1.0,
        "steps": 1,
        "images": 1,
        "round": 1,
        "names": names,
        "parameters": target,
        "last": None,
    }
    return Place(**{**usual, **changes})
