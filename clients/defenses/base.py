"""What a defense is: optional places to act, all pure functions of their input and of a seeded generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fedsim.data.dataset import Normalisation
    from fedsim.protocol import Batch, Update


@dataclass(frozen=True)
class Pool:
    """Where a batch was drawn from: the private images that an encoding may mix it with.

    size: how many images the client has. take: the images at some positions (int64, 0 to size - 1), with their labels.
    positions: int64 (N,), those of the batch itself. classes: of the data set. normalise: the data set's.
    """

    size: int
    take: Callable[[Tensor], Batch]
    positions: Tensor
    classes: int
    normalise: Normalisation


@dataclass(frozen=True)
class Mixed:
    """An encoded batch, and what it was mixed from: the client's secret, and the truth of a decoding attack.

    batch: float32 images (N, C, H, W) and soft labels float32 (N, classes). Sign flips may leave images outside [0, 1].
    indices: int64 (N, k), positions of the client's own images; -1 for a public image.
    coefficients: float32 (N, k); each row sums to 1.
    """

    batch: Batch
    indices: Tensor
    coefficients: Tensor


@dataclass(frozen=True)
class Site:
    """What a client has at hand when it perturbs its update.

    round: counted from 1. model: the network in its training mode, to be left as it is found, buffers included.
    parameters: the broadcast ones, by name. batches: what each local step was trained on, after encoding; none at all
    where a defense has made the gradients (`gradient`).
    memory: what this defense of this client returned in an earlier round; empty in its first.
    """

    round: int
    model: nn.Module
    parameters: Mapping[str, Tensor]
    batches: Sequence[Batch]
    normalise: Normalisation
    memory: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What is settled of a client's training before round 0, for a defense that makes gradients itself.

    size: of the client's data set. batch_size: as set, but at most `size`. steps: local ones a round. rounds: of the
    experiment. All of it is public, the size of the data set too. shape: (C, H, W). others: the client's other
    defenses' settings, in their order.
    """

    size: int
    batch_size: int
    steps: int
    rounds: int
    shape: tuple[int, int, int]
    classes: int
    others: tuple[Any, ...] = ()

    @property
    def rate(self) -> float:
        """The probability with which an image is in a step's batch."""
        return self.batch_size / self.size


@runtime_checkable
class Defense(Protocol):
    """A local defense: a frozen dataclass of its settings, with any of these methods.

    A defense that leaves a place alone does not define its method. `mix` stands instead of `encode`, for an encoding
    that needs the client's other images (a client has at most one such), `perturb_at` instead of `perturb`, for a
    perturbation that needs the model, the batch, the round or what it kept from earlier rounds.

    `gradient` replaces how the gradient of every local step is made (a client has at most one such), for training with
    differential privacy. Its batches are drawn by Poisson sampling, each image with probability `plan.rate`, so a batch
    may have any size, none included. The client then says no more than is public: `plan.batch_size` images a step, and
    no training loss. With it come
        spend(memory, plan) -> memory, after every round in which the client takes part: what its steps cost;
        spent(memory) -> (epsilon, delta), of all rounds so far;
        objection_to_plan(model, plan) -> str | None: why it cannot work here, asked before round 0.
    An encoding in front of it must treat each image by itself, and a perturbation behind it is shown no batches (see
    `Site`); one that cannot do without says so with a class attribute, `reads_batches = True`.

    Three methods more are asked if they are there, before round 0:
    `objection(others, has_batchnorm: bool, policy: str)`, without torch, returns why the defense cannot work beside the
    settings of the client's other defenses, or under this BatchNorm policy, in words for the user, or None;
    `objection_to(model: nn.Module, policy: str)` the same of the built model;
    `images_needed() -> int`, of one that mixes, is how many images a client must have.
    """

    def encode(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Change a private batch before the client trains on it."""
        ...

    def mix(self, batch: Batch, pool: Pool, rng: torch.Generator) -> Mixed:
        """Change a private batch with the help of the client's other images, and say how."""
        ...

    def gradient(
        self, model: nn.Module, batch: Batch, plan: Plan, loss: Callable[[Batch], Tensor], rng: torch.Generator
    ) -> list[Tensor]:
        """A step's gradient, one tensor a parameter in the model's order, with what the step must hide hidden.

        loss: the mean loss of the model on a batch, in training mode; a scalar. The model is left as it is found.
        """
        ...

    def perturb(self, update: Update, rng: torch.Generator) -> Update:
        """Change an update before it leaves the client. `update` holds parameters only, never buffers."""
        ...

    def perturb_at(self, update: Update, site: Site, rng: torch.Generator) -> tuple[Update, Mapping[str, Tensor]]:
        """The same, with the client's site at hand. Returns the update, and what to remember until the next round."""
        ...
