"""What a defense is given of a scene: batches, a pool, an update, a site, a plan. Made anew whenever asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim.clients.defenses.base import Plan, Pool, Site
from fedsim.models.loss import training_loss
from fedsim.protocol import Batch, Update
from fedsim.testing.situations import CLASSES, Scene, images, play, soft


@dataclass(frozen=True)
class Place:
    """A scene as its first client has it."""

    scene: Scene

    def batch(self, count: int | None = None, *, mixed: bool = False) -> Batch:
        """Private images. mixed: with soft labels, as after an encoding that mixes."""
        made = images(self.scene, self.scene.batch if count is None else count)
        return Batch(made.images, soft(made.labels) if mixed else made.labels)

    def pool(self, size: int) -> Pool:
        """What the batch was drawn from: its first images are the batch."""
        everything = images(self.scene, size)
        # Images that do not depend on how many are made beside them.
        first = self.batch()
        count = min(size, len(first))
        everything.images[:count], everything.labels[:count] = first.images[:count], first.labels[:count]

        def take(positions: Tensor) -> Batch:
            return Batch(everything.images[positions].clone(), everything.labels[positions].clone())

        return Pool(size, take, torch.arange(self.scene.batch), CLASSES, self.scene.normalisation)

    def update(self, scale: float = 1.0) -> Update:
        """What the client would send without a defense, times `scale`."""
        return Update({name: scale * value for name, value in play(self.scene, 0, 1).update.items()})

    def site(self, round_: int, memory: Mapping[str, Tensor], *, batches: bool = True) -> Site:
        """What it has at hand. batches: whether it may look at its images again."""
        parameters = {name: value.clone() for name, value in play(self.scene, 0, 1).parameters.items()}
        kept = {name: value.clone() for name, value in memory.items()}
        shown = (self.batch(),) if batches else ()
        return Site(round_, self.model(), parameters, shown, self.scene.normalisation, kept)

    def model(self) -> nn.Module:
        """The network in its training mode, with the broadcast parameters."""
        model = self.scene.built()
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(play(self.scene, 0, 1).parameters[name])
        return model

    def plan(self) -> Plan:
        """Of a client with eight images, for three rounds of two steps."""
        return Plan(8, self.scene.batch, 2, 3, self.scene.shape, CLASSES)

    def loss(self, model: nn.Module) -> Callable[[Batch], Tensor]:
        """The mean loss of the model on a batch."""
        return lambda batch: training_loss(model, model(self.scene.normalisation(batch.images)), batch.labels)
