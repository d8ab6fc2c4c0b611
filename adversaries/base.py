"""What an adversary gets, makes and returns. A plugin needs nothing else from fedsim.

An adversary is a frozen dataclass of its settings with two attributes and two methods; see `Adversary`.
All four kinds of object here are plain data, so that a job can be stored, moved to another machine and run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Observation:
    """What one vantage shows of one client in one round: a frozen copy.

    tensors: by path. `model/NAME` the broadcast parameters, `buffers/NAME` the broadcast BatchNorm statistics where the
        policy sends them, `update/NAME` the client's update as it left the client (after its defenses),
        `sent_buffers/NAME` the statistics that came with it, and `known/...` what the threat model grants besides
        (`known/labels`, as the client trained with them: int64 (N,), or soft, float32 (N, classes), where a defense
        mixes them; `known/mean/LAYER` and `known/var/LAYER`, the private batch's biased statistics;
        `known/running_mean/LAYER` and `known/running_var/LAYER`; `known/mixing_indices`, int64 (N, k): which of the
        client's images each encoded one was mixed from, -1 for a public one; `known/mixing_coefficients`, float32
        (N, k): with which weights); `own/images` and `own/labels` of the adversary itself, for the vantage `client`.
        Absent is what this vantage may not see.
    facts: JSON data. `model` {name, settings}, `image_shape` [C, H, W], `classes`, `mean` and `std` (the data set's
        normalisation, one value a channel), `batchnorm` (policy), `algorithm`, `num_examples`, `num_steps`,
        `learning_rate`, `batch_size`, `momentum` and `weight_decay` (of the local steps), `bytes_down` and `bytes_up`,
        `defenses` [{name, ...}] where the threat model grants it, `clients`: whose updates were summed, where only a
        sum is shown; `update` is then the mean weighted by the number of examples, the gradient of the batch of all,
        `num_examples` and `bytes_...` are sums, labels stand one client after the other, and a fact that is not the
        same for all of them is absent; and `granted`: all that it shows and
        grants, in the words of `fedsim.experiment`.
    """

    round: int
    client: int
    vantage: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    facts: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below `prefix/`, by the rest of their path, in the order of the model's parameters."""
        return {name[len(prefix) + 1 :]: value for name, value in self.tensors.items() if name.startswith(prefix + "/")}

    def sees(self, prefix: str) -> bool:
        """Whether anything below `prefix/` was shown."""
        return any(name.startswith(prefix + "/") for name in self.tensors)


@dataclass(frozen=True)
class Job:
    """One attack to run: self-contained, and addressed by the hash of its content."""

    observations: tuple[Observation, ...]
    notes: Mapping[str, Any] = field(default_factory=dict)
    """JSON data that `capture` wants `attack` to have."""


@dataclass(frozen=True)
class Reconstruction:
    """What an attack returns.

    images: float32 (N, C, H, W) in [0, 1]; None from an attack that is after the labels alone.
    labels: int64 (N,), the attack's own guess or the labels it was granted; None if it makes no claim.
    objective: the attack's own final loss, the only thing by which it may choose among trials.
    history: (iteration, objective) pairs, for the report.
    initial: the guess that the attack started from, scored beside the result as its floor; None if there is none.
    raw: the images before they were brought into [0, 1], in the network's (normalised) units; for `combine`.
    ids: int64 (N,), which of the client's private images each is, where the threat model grants these ids
        ("mixing_indices"): images are then scored against those that they claim to be, not against any.
    status: "done", or a word for what went wrong ("nan": the last finite guess is returned).
    """

    images: Tensor | None
    labels: Tensor | None
    objective: float
    iterations: int
    history: tuple[tuple[int, float], ...] = ()
    initial: Tensor | None = field(default=None, repr=False)
    status: str = "done"
    raw: Tensor | None = field(default=None, repr=False)
    ids: Tensor | None = field(default=None, repr=False)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Situation:
    """What is known before round 0 of what an adversary is to attack: public to the participants, but for `defenses`,
    by which alone a file is checked.

    model: its name. has_batchnorm: None where only the built model can tell. batchnorm: the policy.
    algorithm: `fedsgd` or `fedavg`. one_gradient: whether each update is one gradient, up to the rate: one local step
        without weight decay.
    batch_sizes: of the local steps of each targeted client. aggregate: whether only the sum of their updates is shown.
    defenses: the names of each targeted client's defenses; None where that is not known.
    """

    model: str
    has_batchnorm: bool | None
    batchnorm: str
    algorithm: str
    one_gradient: bool
    batch_sizes: tuple[int, ...]
    aggregate: bool = False
    defenses: tuple[tuple[str, ...], ...] | None = None


class Adversary(Protocol):
    """An adversary plugin.

    Two methods more are asked if they are there, both before round 0. Either returns why the adversary cannot work, in
    words for the user, or None:
        objection(situation: Situation) -> str | None, without torch, and
        objection_to(model: nn.Module, situation: Situation) -> str | None, once the model is built.

    A third, if it is there, puts together what the jobs of all rounds on the same client (or the same sum) gave:
        combine(parts: Sequence[tuple[Job, Reconstruction]], device, rng) -> Reconstruction, as pure as `attack`.
    The parts come in the order of the rounds; a job is read from disk whenever it is looked at, so that not all of them
    need be in memory at once. Those that failed are left out. Only the outcome is scored then. It may
    also be several, by name: {name: Reconstruction}; each is scored as the adversary "ID-NAME".

    needs: what it must see or know, in the words of the threat model (`fedsim.experiment.SIGHTS` and `KNOWLEDGE`).
        Checked before round 0; a run whose threat model does not grant them all is refused, naming plugin and item.
        May be a property that depends on the settings.
    powers: what it must be able to alter; empty for a passive adversary.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def powers(self) -> frozenset[str]: ...

    def capture(self, seen: Observation) -> Iterable[Job]:
        """Turn an observation into jobs. Cheap; runs in the simulation's own process while training goes on."""
        ...

    def attack(self, job: Job, device: torch.device, rng: torch.Generator) -> Reconstruction:
        """Run one job. Pure in (job, rng): may run anywhere, any number of times."""
        ...
