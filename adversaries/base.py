"""What an adversary gets, makes and returns. A plugin needs nothing else from fedsim.

An adversary is a frozen dataclass of its settings with two attributes and two methods; see `Adversary`.
All four kinds of object here are plain data, so that a job can be stored, moved to another machine and run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
        Under secure aggregation, of each client by itself: `masked/vector`, int32 or int64 (size,), the masked ring
        elements as signed numbers (or `masked/ciphertext`, uint8, under `ckks`); `keys/...`, `encrypted/TO` and
        `opened/...`, uint8, what its other messages held. Of clients that work together with a server, `colluders`:
        `colluder/CLIENT/update/NAME` and `colluder/CLIENT/sent_buffers/NAME`, as they sent them before masking.
        Absent is what this vantage may not see.
    facts: JSON data. `model` {name, settings}, `image_shape` [C, H, W], `classes`, `mean` and `std` (the data set's
        normalisation, one value a channel), `batchnorm` (policy), `algorithm`, `num_examples`, `num_steps`,
        `learning_rate`, `batch_size`, `momentum` and `weight_decay` (of the local steps), `bytes_down` and `bytes_up`,
        `defenses` [{name, ...}] where the threat model grants it; `secure_aggregation` where there is one (public):
        {name, bits, clip, scale, statistics_scale, most_examples, layout {update, statistics: {NAME: shape}}, ...}, in
        which names stand in alphabetical order once it was stored; and `granted`: all that it shows and grants, in the
        words of `fedsim.experiment`.
        Where only a sum is shown, `clients`: whose updates were summed; `update` is then the mean weighted by the
        number of examples, the gradient of the batch of all, `num_examples` and `bytes_...` are sums, labels stand one
        client after the other, and a fact that is not the same for all of them is absent. Under secure aggregation
        there are besides `targets`: whom the adversary is after, and `colluders` {CLIENT: {num_examples, num_steps}};
        for an adversary that derives, `sum/update/NAME` and `sum/sent_buffers/NAME` are the means in float64.
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
    defenses: the names of each targeted client's defenses; None where that is not known. secure_aggregation: the name
    of the mode, or "off".
    """

    model: str
    has_batchnorm: bool | None
    batchnorm: str
    algorithm: str
    one_gradient: bool
    batch_sizes: tuple[int, ...]
    aggregate: bool = False
    defenses: tuple[tuple[str, ...], ...] | None = None
    secure_aggregation: str = "off"


@dataclass(frozen=True)
class Derived:
    """What a derivation made of all that an adversary was shown.

    observations: each of one client in one round, as if its update had been seen; `facts` hold what the plugin that is
        to attack needs (as those of the observation that it came from), and `granted` all that it shows.
    notes: for a person: which clients could be told apart, when, and which could not, and why.
    """

    observations: tuple[Observation, ...]
    notes: tuple[str, ...] = ()


class Derivation(Protocol):
    """How an adversary makes single updates out of what it sees: a step before the attack, by name (`derive = ...`).

    It runs once, when all rounds are over, in the simulation's own process, on copies of what the vantage showed. The
    observations that it returns take the place of those for the adversary's `capture`.

    needs, powers: as an adversary's. gives: what its observations show besides, in the words of the threat model; the
    adversary's own needs may be among them.

    A derivation (or an adversary) with a power has one method for it, called in the server's place before a message
    leaves it, only in the rounds of its entry, and only if the entry grants the power:
        alter_model(round_, client, targets, parameters) -> Mapping[str, Tensor], for "alter_model": the global
            parameters that this client is sent instead.
        alter_request(round_, client, targets, stage, request) -> Mapping, for "alter_requests": the entries of a query
            of the secure aggregation that this client is sent instead (bytes, numbers and lists of them).
    Both must return new objects and change nothing in what they are given.

    One method more is asked if it is there, before round 0: objection(situation: Situation) -> str | None.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def powers(self) -> frozenset[str]: ...

    @property
    def gives(self) -> frozenset[str]: ...

    def derive(self, seen: Sequence[Observation]) -> Derived:
        """Single updates from what was shown; pure. seen: in the order of rounds; each is read from disk when looked
        at."""
        ...


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
