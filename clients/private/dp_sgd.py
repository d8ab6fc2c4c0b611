"""DP-SGD as a defense: its settings, the private gradient, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from fedsim.errors import SettingError
from fedsim.settings import Count, NonNegative, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fedsim.clients.defenses.base import Plan
    from fedsim.protocol import Batch

_HISTORY = "history"
_OWNER = "defense dp_sgd"


@dataclass(frozen=True)
class DPSGD:
    """Trains with differential privacy: clipped per-example gradients, Gaussian noise, Poisson sampling; by Opacus.

    Source: Abadi et al. (CCS 2016), algorithm 1. With q = batch_size / n for a client of n images, each image is in a
    step's batch with probability q, and the step's gradient is

        (sum of the batch's gradients, each scaled down to norm C at most, + N(0, (sigma C)^2)) / (q n).

    The guarantee, (epsilon, delta) over all rounds in which the client took part, is for one image that is added to a
    client's data or removed, against whoever sees all that the client ever sends; n itself counts as public. That the
    server draws only some clients a round lowers no epsilon. The client says nothing else of its data: no training
    loss, and as the number of examples the expected one.

    It is a simulation's guarantee: noise comes from the experiment's seed, and who knows the seed can take it off.

    noise_multiplier: sigma. 1 if neither this nor target_epsilon is given. Of 0, epsilon is infinite.
    max_grad_norm: C, in the units of the gradient of one image's loss.
    delta: the probability that the guarantee leaves aside; far below 1 / n.
    target_epsilon: instead of sigma; the noise is then such that epsilon is at most this after all rounds of the
        experiment, for a client that takes part in all of them.
    accountant: `rdp`, or `prv`, tighter and much slower.
    physical_batch: at most so many images' gradients are held at a time, for larger batches than the memory has room
        for; the outcome is the same.
    """

    noise_multiplier: NonNegative | None = None
    max_grad_norm: Positive = 1.0
    delta: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 1e-5
    target_epsilon: Positive | None = None
    accountant: Literal["rdp", "prv"] = "rdp"
    physical_batch: Count | None = None

    def check(self) -> None:
        """Raises SettingError where the noise is given twice."""
        if self.noise_multiplier is not None and self.target_epsilon is not None:
            raise SettingError(_OWNER, "target_epsilon", "it sets the noise, and noise_multiplier does too; give one")

    def sigma(self, plan: Plan) -> float:
        """The noise multiplier. Raises ValueError where none is large enough for the target epsilon."""
        from fedsim.clients.private import spending

        if self.target_epsilon is None:
            return 1.0 if self.noise_multiplier is None else self.noise_multiplier
        steps = plan.rounds * plan.steps
        return spending.calibrated(self.target_epsilon, self.delta, plan.rate, steps, self.accountant)

    def gradient(
        self, model: nn.Module, batch: Batch, plan: Plan, loss: Callable[[Batch], Tensor], rng: torch.Generator
    ) -> list[Tensor]:
        """The private gradient. Noise is drawn on the CPU, tensor by tensor in the order of the parameters."""
        import torch

        from fedsim.clients.private.gradients import clipped_sum

        total = clipped_sum(model, batch, self.max_grad_norm, loss, self.physical_batch)
        std = self.sigma(plan) * self.max_grad_norm
        return [(value + std * torch.randn(value.shape, generator=rng).to(value)) / plan.batch_size for value in total]

    def spend(self, memory: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
        """The memory after one round more."""
        from fedsim.clients.private import spending

        return {_HISTORY: spending.extended(memory.get(_HISTORY), self.sigma(plan), plan.rate, plan.steps)}

    def spent(self, memory: Mapping[str, Tensor]) -> tuple[float, float]:
        """Epsilon, of all steps so far, and delta."""
        from fedsim.clients.private import spending

        return spending.epsilon(memory.get(_HISTORY), self.delta, self.accountant), self.delta

    def objection(self, others: Sequence[Any], has_batchnorm: bool, policy: str) -> str | None:
        """Why it cannot work beside a client's other defenses, or under this policy; None if it can."""
        if has_batchnorm and policy not in ("group_norm", "freeze"):
            return (
                f'under batchnorm = "{policy}" BatchNorm mixes the images of a batch, so that no image has a gradient '
                'of its own, and its statistics are not protected; use batchnorm = "group_norm", or "freeze"'
            )
        for other in others:
            if hasattr(other, "mix"):
                return (
                    f"{type(other).__name__} puts one image into several mixtures, so that clipping the gradient of a "
                    "mixture does not bound what one image does; use one of the two"
                )
            if getattr(other, "reads_batches", False):
                return (
                    f"{type(other).__name__} looks at the private batch once more after the noise, which undoes the "
                    "guarantee; use one of the two, or a defense that sees the update alone"
                )
            if hasattr(other, "gradient"):
                return f"{type(other).__name__} makes the gradient as well; a client's gradient is made once"
        return None

    def objection_to(self, model: nn.Module, policy: str) -> str | None:
        """Why a layer cannot be trained privately, or None."""
        from opacus.validators import ModuleValidator

        from fedsim import batchnorm

        against = self.objection((), bool(batchnorm.layers(model)), policy)
        if against:
            return against
        for name, module in model.named_modules():
            if getattr(module, "inplace", False):
                return f"layer '{name}' works in place, where Opacus' hooks cannot follow; build it with inplace=False"
        batchnorm.training_mode(model, policy)
        others = (error for error in ModuleValidator.validate(model) if not _about_batchnorm(error))
        return next((f"Opacus cannot train this model: {error}" for error in others), None)

    def objection_to_plan(self, model: nn.Module, plan: Plan) -> str | None:
        """Why it cannot protect this client, or None. Tries per-example gradients on two made-up images."""
        against = self.objection(plan.others, False, "")
        if against:
            return against
        try:
            self.sigma(plan)
        except ValueError as error:
            steps = plan.rounds * plan.steps
            return f"no noise gives target_epsilon = {self.target_epsilon} after {steps} steps ({error}); raise it"
        from fedsim.clients.private.trial import trial

        return trial(model, plan.shape, plan.classes)


def _about_batchnorm(error: Exception) -> bool:
    # Frozen layers are no obstacle, and others were refused before.
    return str(error).startswith("BatchNorm ")
