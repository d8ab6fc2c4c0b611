"""Defenses that conform, and for each rule one that breaks it and no other. No test is in here."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, ClassVar


@dataclass(frozen=True)
class Fine:
    """Leaves the update as it is. Source: none."""

    def perturb_at(self, update: Any, site: Any, rng: Any) -> Any:
        return update, {}


@dataclass(frozen=True)
class FineEncoding:
    """Turns images over. Source: none."""

    def encode(self, batch: Any, rng: Any) -> Any:
        return replace(batch, images=batch.images.flip(3))


@dataclass(frozen=True)
class FineMixing:
    """Mixes each image with nothing. Source: none."""

    def images_needed(self) -> Any:
        return 1

    def mix(self, batch: Any, pool: Any, rng: Any) -> Any:
        import torch

        from fedsim.clients.defenses.base import Mixed

        return Mixed(batch, pool.positions[: len(batch), None], torch.ones(len(batch), 1))


@dataclass(frozen=True)
class FineGradient:
    """Makes zeros for a gradient. Source: none."""

    def gradient(self, model: Any, batch: Any, plan: Any, loss: Any, rng: Any) -> Any:
        import torch

        return [torch.zeros_like(value) for value in model.parameters()]

    def spend(self, memory: Any, plan: Any) -> Any:
        import torch

        return {"rounds": memory.get("rounds", torch.zeros(1)) + 1}

    def spent(self, memory: Any) -> Any:
        return float(memory["rounds"]), 1e-5

    def objection_to(self, model: Any, policy: str) -> Any:
        return None

    def objection_to_plan(self, model: Any, plan: Any) -> Any:
        return None


@dataclass(frozen=True)
class Bystander:
    """Does nothing. Source: none."""


@dataclass(frozen=True)
class Torn(Fine):
    """Acts twice in one place. Source: none."""

    def perturb(self, update: Any, rng: Any) -> Any:
        return update


@dataclass(frozen=True)
class Unaccounted:
    """Makes gradients and does not say what they cost. Source: none."""

    def gradient(self, model: Any, batch: Any, plan: Any, loss: Any, rng: Any) -> Any: ...


@dataclass(frozen=True)
class Flagged(Fine):
    """Declares a word for a truth. Source: none."""

    reads_batches: ClassVar[Any] = "yes"


@dataclass(frozen=True)
class Setting(Fine):
    """Its flag is a setting by mistake. Source: none."""

    reads_batches: bool = True


@dataclass(frozen=True)
class Curt(Fine):
    """Objects without words. Source: none."""

    def objection(self, others: Any, has_batchnorm: bool, policy: str) -> Any:
        return policy == "freeze"


@dataclass(frozen=True)
class CurtToModels(Fine):
    """Objects to a model without words. Source: none."""

    def objection_to(self, model: Any, policy: str) -> Any:
        return False


@dataclass(frozen=True)
class Refusing(Fine):
    """Objects to everything. Source: none."""

    def objection(self, others: Any, has_batchnorm: bool, policy: str) -> Any:
        return "it is tired"


@dataclass(frozen=True)
class Insatiable(FineMixing):
    """Needs no number of images. Source: none."""

    def images_needed(self) -> Any:
        return "many"


@dataclass(frozen=True)
class Failing(Fine):
    """Fails in colour. Source: none."""

    def perturb_at(self, update: Any, site: Any, rng: Any) -> Any:
        if len(site.normalise.mean) > 1 and site.batches:
            raise ValueError("no colour")
        return update, {}


@dataclass(frozen=True)
class Vandal(Fine):
    """Works in place. Source: none."""

    def perturb_at(self, update: Any, site: Any, rng: Any) -> Any:
        return update.map(lambda value: value.add_(1)), {}


@dataclass(frozen=True)
class Careless(Fine):
    """Leaves the model in another mode. Source: none."""

    def perturb_at(self, update: Any, site: Any, rng: Any) -> Any:
        site.model.eval()
        return update, {}


@dataclass(frozen=True)
class Sharing(Fine):
    """Draws from torch's own generator. Source: none."""

    def perturb_at(self, update: Any, site: Any, rng: Any) -> Any:
        import torch

        return update.map(lambda value: value + torch.randn(value.shape)), {}


@dataclass(frozen=True)
class Moody(Fine):
    """Draws from the operating system. Source: none."""

    def perturb_at(self, update: Any, site: Any, rng: Any) -> Any:
        return update.map(lambda value: value + float.fromhex(os.urandom(2).hex())), {}


@dataclass(frozen=True)
class Dropping(FineEncoding):
    """Leaves an image out. Source: none."""

    def encode(self, batch: Any, rng: Any) -> Any:
        return replace(batch, images=batch.images[:-1])


@dataclass(frozen=True)
class Mislabelling(FineEncoding):
    """Invents a class. Source: none."""

    def encode(self, batch: Any, rng: Any) -> Any:
        return replace(batch, labels=batch.labels + 10)


@dataclass(frozen=True)
class Overweight(FineMixing):
    """Mixes with weights that do not sum to 1. Source: none."""

    def mix(self, batch: Any, pool: Any, rng: Any) -> Any:
        mixed = super().mix(batch, pool, rng)
        return replace(mixed, coefficients=2 * mixed.coefficients)


@dataclass(frozen=True)
class Elsewhere(FineMixing):
    """Mixes with images that are not there. Source: none."""

    def mix(self, batch: Any, pool: Any, rng: Any) -> Any:
        mixed = super().mix(batch, pool, rng)
        return replace(mixed, indices=mixed.indices + 1000)


@dataclass(frozen=True)
class Flattening(Fine):
    """Flattens the update. Source: none."""

    def perturb_at(self, update: Any, site: Any, rng: Any) -> Any:
        return update.map(lambda value: value.flatten()), {}


@dataclass(frozen=True)
class Lossy(Fine):
    """Leaves a tensor out. Source: none."""

    def perturb_at(self, update: Any, site: Any, rng: Any) -> Any:
        return replace(update, tensors=dict(list(update.tensors.items())[1:])), {}


@dataclass(frozen=True)
class Normalising:
    """Divides by the norm, which may be zero. Source: none."""

    def perturb(self, update: Any, rng: Any) -> Any:
        norm = update.norm()
        return update.map(lambda value: value / norm)


@dataclass(frozen=True)
class Forgetful(Fine):
    """Remembers what cannot be kept. Source: none."""

    def perturb_at(self, update: Any, site: Any, rng: Any) -> Any:
        return update, {"rounds": site.round}


@dataclass(frozen=True)
class Reading(Fine):
    """Looks at the batch without saying so. Source: none."""

    def perturb_at(self, update: Any, site: Any, rng: Any) -> Any:
        scale = len(site.batches[0])
        return update.map(lambda value: value * scale), {}


@dataclass(frozen=True)
class Averaging(FineGradient):
    """Divides by the number of images, which may be none. Source: none."""

    def gradient(self, model: Any, batch: Any, plan: Any, loss: Any, rng: Any) -> Any:
        import torch

        return [value / torch.tensor(float(len(batch))) for value in super().gradient(model, batch, plan, loss, rng)]


@dataclass(frozen=True)
class Forgiving(FineGradient):
    """Gives privacy back. Source: none."""

    def spent(self, memory: Any) -> Any:
        return 5.0 - float(memory["rounds"]), 1e-5
