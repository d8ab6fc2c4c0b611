"""An adversary that conforms, and for each rule one that breaks it and no other. No test is in here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from fedsim.adversaries.base import Job, Observation, Reconstruction, Situation
from fedsim.settings import Fraction

NEEDS = frozenset({"global_model", "num_examples", "mixing_indices"})
"""The last of them leaves few situations to try."""


@dataclass(frozen=True)
class Fine:
    """Guesses an even gray. Source: none."""

    level: Fraction = 0.5

    needs: ClassVar[Any] = NEEDS
    powers: ClassVar[Any] = frozenset()

    def capture(self, seen: Observation) -> Iterable[Any]:
        yield Job((seen,))

    def attack(self, job: Job, device: Any, rng: Any) -> Any:
        import torch

        facts = job.observations[0].facts
        images = torch.full((facts["num_examples"], *facts["image_shape"]), min(self.level, 1.0))
        return Reconstruction(images, None, 0.0, 0)


class Thawed(Fine):
    """A class that is no dataclass itself. Source: none."""


@dataclass(frozen=True)
class Speechless(Fine):
    pass


@dataclass(frozen=True)
class Untyped(Fine):
    """Takes anything for a setting. Source: none."""

    level: Any = 0.5


@dataclass(frozen=True)
class Mistyped(Fine):
    """Its default does not fit its type. Source: none."""

    level: Fraction = 7.0


@dataclass(frozen=True)
class Homonym(Fine):
    """A setting is called like a word of the entry. Source: none."""

    targets: int = 1


@dataclass(frozen=True)
class Needy(Fine):
    """Its needs are a setting by mistake. Source: none."""

    needs: frozenset[str] = NEEDS


@dataclass(frozen=True)
class Listed(Fine):
    """Its settings cannot be hashed. Source: none."""

    levels: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Heavy(Fine):
    """Imports torch to object. Source: none."""

    def objection(self, situation: Situation) -> str | None:
        import torch

        return None if torch.ones(1) else "never"


@dataclass(frozen=True)
class Partial:
    """Has no attack. Source: none."""

    needs: ClassVar[Any] = NEEDS
    powers: ClassVar[Any] = frozenset()

    def capture(self, seen: Observation) -> Iterable[Job]:
        yield Job((seen,))


@dataclass(frozen=True)
class Clairvoyant(Fine):
    """Needs what no threat model has. Source: none."""

    needs: ClassVar[Any] = NEEDS | {"truth"}


@dataclass(frozen=True)
class Mighty(Fine):
    """Its powers are no frozenset. Source: none."""

    powers: ClassVar[Any] = ["alter_model"]


@dataclass(frozen=True)
class Unarmed(Fine):
    """Has a power and no method for it. Source: none."""

    powers: ClassVar[Any] = frozenset({"alter_model"})


@dataclass(frozen=True)
class Trickster(Fine):
    """Has a method and no power for it. Source: none."""

    def alter_model(self, round_: int, client: int, targets: Any, parameters: Any) -> Any:
        return parameters


@dataclass(frozen=True)
class Shrinking(Fine):
    """Sends a model of another shape. Source: none."""

    powers: ClassVar[Any] = frozenset({"alter_model"})

    def alter_model(self, round_: int, client: int, targets: Any, parameters: Any) -> Any:
        return {name: value[:1] for name, value in parameters.items()}


@dataclass(frozen=True)
class InPlace(Fine):
    """Changes the server's own model. Source: none."""

    powers: ClassVar[Any] = frozenset({"alter_model"})

    def alter_model(self, round_: int, client: int, targets: Any, parameters: Any) -> Any:
        return {name: value.mul_(2) for name, value in parameters.items()}


@dataclass(frozen=True)
class Asking(Fine):
    """Asks with what no message holds. Source: none."""

    powers: ClassVar[Any] = frozenset({"alter_requests"})

    def alter_request(self, round_: int, client: int, targets: Any, stage: str, request: Any) -> Any:
        return {**request, "more": {1, 2}}


@dataclass(frozen=True)
class Curt(Fine):
    """Objects without words. Source: none."""

    def objection(self, situation: Situation) -> Any:
        return situation.aggregate


@dataclass(frozen=True)
class CurtToModels(Fine):
    """Objects to a model without words. Source: none."""

    def objection_to(self, model: Any, situation: Situation) -> Any:
        return 0


@dataclass(frozen=True)
class Meddling(Fine):
    """Changes the model that it is asked about. Source: none."""

    def objection_to(self, model: Any, situation: Situation) -> str | None:
        model.eval()
        return None


@dataclass(frozen=True)
class Nosy(Fine):
    """Reads labels that it did not declare. Source: none."""

    def attack(self, job: Job, device: Any, rng: Any) -> Any:
        return replace(super().attack(job, device, rng), labels=job.observations[0].tensors["known/labels"])


@dataclass(frozen=True)
class Peeking(Fine):
    """Reads a size that it did not declare, while training goes on. Source: none."""

    def capture(self, seen: Observation) -> Iterable[Any]:
        yield Job((seen,), {"size": seen.facts["bytes_up"]})


@dataclass(frozen=True)
class Failing(Fine):
    """Fails. Source: none."""

    def attack(self, job: Job, device: Any, rng: Any) -> Any:
        raise ZeroDivisionError("by zero")


@dataclass(frozen=True)
class Jobless(Fine):
    """Gives observations for jobs. Source: none."""

    def capture(self, seen: Observation) -> Iterable[Any]:
        yield seen


@dataclass(frozen=True)
class Idle(Fine):
    """Never finds anything to attack. Source: none."""

    def capture(self, seen: Observation) -> Iterable[Any]:
        return []


@dataclass(frozen=True)
class Unstorable(Fine):
    """Notes what is no JSON. Source: none."""

    def capture(self, seen: Observation) -> Iterable[Any]:
        yield Job((seen,), {"what": {1, 2}})


@dataclass(frozen=True)
class Renumbered(Fine):
    """Notes numbers for keys, which come back as texts. Source: none."""

    def capture(self, seen: Observation) -> Iterable[Any]:
        yield Job((seen,), {"what": {1: [2]}})


@dataclass(frozen=True)
class Throng(Fine):
    """Answers with more images than there were. Source: none."""

    def attack(self, job: Job, device: Any, rng: Any) -> Any:
        found = super().attack(job, device, rng)
        return replace(found, images=found.images.repeat(2, 1, 1, 1))


@dataclass(frozen=True)
class Bright(Fine):
    """Answers with images that are none. Source: none."""

    def attack(self, job: Job, device: Any, rng: Any) -> Any:
        found = super().attack(job, device, rng)
        return replace(found, images=found.images + 1)


@dataclass(frozen=True)
class Double(Fine):
    """Answers in double precision. Source: none."""

    def attack(self, job: Job, device: Any, rng: Any) -> Any:
        found = super().attack(job, device, rng)
        return replace(found, images=found.images.double())


@dataclass(frozen=True)
class Nameless(Fine):
    """Puts answers together under no name. Source: none."""

    def combine(self, parts: Any, device: Any, rng: Any) -> Any:
        return {"a/b": parts[0][1]}


@dataclass(frozen=True)
class Hoarding(Fine):
    """Remembers what it saw. Source: none."""

    seen: ClassVar[list[int]] = []

    def capture(self, seen: Observation) -> Iterable[Any]:
        self.seen.append(seen.round)
        yield Job((seen,))


@dataclass(frozen=True)
class Vandal(Fine):
    """Writes into its job. Source: none."""

    def attack(self, job: Job, device: Any, rng: Any) -> Any:
        next(iter(job.observations[0].tensors.values())).zero_()
        return super().attack(job, device, rng)


@dataclass(frozen=True)
class Sharing(Fine):
    """Draws from torch's own generator. Source: none."""

    def attack(self, job: Job, device: Any, rng: Any) -> Any:
        import torch

        found = super().attack(job, device, rng)
        return replace(found, images=torch.rand(found.images.shape))


@dataclass(frozen=True)
class SharingNumPy(Fine):
    """Draws from NumPy's own generator, while training goes on. Source: none."""

    def capture(self, seen: Observation) -> Iterable[Any]:
        import numpy as np

        yield Job((seen,), {"level": float(np.random.rand())})


@dataclass(frozen=True)
class Moody(Fine):
    """Answers something else each time. Source: none."""

    def attack(self, job: Job, device: Any, rng: Any) -> Any:
        return replace(super().attack(job, device, rng), objective=float.fromhex(os.urandom(6).hex()))


@dataclass(frozen=True)
class Refusing(Fine):
    """Objects to everything. Source: none."""

    def objection(self, situation: Situation) -> str | None:
        return "it is tired"


@dataclass(frozen=True)
class Short(Fine):
    """Answers one of several jobs. Source: none."""

    def attack_many(self, jobs: Any, device: Any, rngs: Any) -> Any:
        return [self.attack(jobs[0], device, rngs[0])]


@dataclass(frozen=True)
class Homebound(Fine):
    """Answers by which process it is in. Source: none."""

    def attack(self, job: Job, device: Any, rng: Any) -> Any:
        return replace(super().attack(job, device, rng), objective=float(os.getpid()))
