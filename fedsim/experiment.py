"""The words of an experiment: what a file may say, section by section, as frozen data.

Reading a file into these, with file, line and key in every error, is `experiment_file.py`'s work. Nothing heavy is
imported here, so that a mistake is answered at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from fedsim.settings import Count, Device, Fraction, Index, Name, NonNegative, OpenFraction, Positive, RayAddress

Vantage = Literal["link", "server", "client"]
"""Where an adversary stands."""

Sight = Literal[
    "sizes",
    "global_model",
    "update",
    "num_examples",
    "training_details",
    "masked_update",
    "encrypted_shares",
    "opened_shares",
    "colluders",
    "own_data",
]
"""What a vantage can show; `adversaries.threat` has the table of which shows what."""

Knowledge = Literal[
    "labels", "batch_statistics", "running_statistics", "defenses", "mixing_indices", "mixing_coefficients"
]
"""What an adversary may be granted besides what its vantage shows: the labels of the private batch, as the client
trained with them; the BatchNorm statistics of the private batch; the client's running BatchNorm statistics; which
defenses the client uses, with their settings (not their random draws); of what encodings that mix images drew, which
images were mixed, and with which coefficients."""

Power = Literal["alter_update", "alter_model", "alter_requests"]
"""What an adversary may change on its way: a client's update; the global model that a client is sent; what a server
asks of the clients in a secure aggregation. Passive adversaries have none."""

BatchNormPolicy = Literal["share_batch", "share_running", "local", "freeze", "group_norm"]
LpipsNet = Literal["squeeze", "alex", "vgg", "off"]
Algorithm = Literal["fedsgd", "fedavg"]

MOST_CLIENTS = 1_000_000
"""As many as a federation may have: lists of clients, such as targets = "all", are written out."""

OFF = "off"
"""What a file says for no secure aggregation."""

SIGHTS: tuple[str, ...] = get_args(Sight)
KNOWLEDGE: tuple[str, ...] = get_args(Knowledge)
POWERS: tuple[str, ...] = get_args(Power)


@dataclass(frozen=True)
class Component:
    """A named component with its settings, an instance of the frozen dataclass that the plugin defines."""

    name: str
    settings: Any

    def describe(self) -> dict[str, Any]:
        """Name and settings as plain JSON data, as they stand in a file."""
        return {"name": self.name, **{f.name: getattr(self.settings, f.name) for f in fields(self.settings)}}


@dataclass(frozen=True)
class Data:
    """`[data]`: a data set by name, with its own settings beside it, and how it is spread over the clients."""

    dataset: Component
    partition: Component


@dataclass(frozen=True)
class LocalTraining:
    """What one client does in a round. A group may override any of it for its members."""

    batch_size: Count = 32
    """Images a step."""
    local_epochs: Count = 1
    """fedavg: passes over the client's data, unless `local_steps` is given."""
    local_steps: Count | None = None
    """fedavg: steps a round, instead of epochs."""
    learning_rate: Positive = 0.05
    """fedavg: of the local SGD. (FedSGD sends the gradient; its step is the server's learning rate.)"""
    momentum: OpenFraction = 0.0
    weight_decay: NonNegative = 0.0
    batches: Literal["random", "epochs", "in_order"] = "random"
    """fedsgd: which images a round's batch holds. random: drawn anew each round; epochs: the rounds walk through
    shuffled passes over the client's images; in_order: through passes in the order of the data set."""
    defenses: tuple[Component, ...] = ()
    """In the order in which they act."""


@dataclass(frozen=True)
class Group(LocalTraining):
    """`[[clients.groups]]`: some members with settings of their own."""

    members: tuple[Index, ...] = ()


@dataclass(frozen=True)
class Clients(LocalTraining):
    """`[clients]`."""

    count: Annotated[Count, Field(le=MOST_CLIENTS)] = 10
    per_round: Count | None = None
    """Clients drawn at random each round; all of them if absent."""
    algorithm: Algorithm = "fedavg"
    batchnorm: BatchNormPolicy = "share_running"
    groups: tuple[Group, ...] = ()
    dropout: OpenFraction = 0.0
    """The probability with which a client that was drawn leaves the round: in training or, under secure aggregation, at
    one of its stages, drawn at random."""

    def training(self, client: int) -> LocalTraining:
        """The settings that hold for one client."""
        return next((group for group in self.groups if client in group.members), self)


@dataclass(frozen=True)
class Server:
    """`[server]`."""

    strategy: Component
    learning_rate: NonNegative
    """The step along the aggregated update: 1 for fedavg; for fedsgd, the rate of the gradient step. 0: the model
    stays as it is, and all rounds show the same one."""
    secure_aggregation: Component | None = None
    """How the clients' updates are summed so that the server learns the sum alone; None ("off" in a file): not."""
    tls: bool = False
    """Whether the links are encrypted. Then a link shows sizes alone."""
    milestones: tuple[Count, ...] = ()
    """Rounds after each of which this learning rate is multiplied by `gamma` (in fedsgd, the usual step schedule)."""
    gamma: Positive = 0.1
    evaluate_every: Index = 1
    """Rounds between two evaluations on the held-out set; the first and the last model are always evaluated. 0: never,
    not even those."""
    min_clients: Count = 1
    """With fewer usable updates in a round, the round is skipped and the model stays as it was."""


@dataclass(frozen=True)
class AdversaryEntry:
    """`[[adversaries]]`: one adversary in its place: the threat model, and the plugin that makes use of it."""

    id: Name
    plugin: Component
    vantage: Vantage
    targets: tuple[Index, ...]
    """Clients whose data are attacked; a file may say "all"."""
    rounds: tuple[Count, ...]
    """Counted from 1; a file may say "all"."""
    knows: tuple[Knowledge, ...] = ()
    powers: tuple[Power, ...] = ()
    member: Index | None = None
    """The client that the adversary is, for the vantage `client`."""
    aggregate: bool = False
    """It is shown the sum of its targets' updates in a round and no single one, as an ideal secure aggregation would
    have it. For the vantage `server`."""
    colluders: tuple[Index, ...] = ()
    """Clients that work together with it: they give it their updates and example counts. For the vantage `server`."""
    derive: Component | None = None
    """How it makes single updates out of what it sees, before its plugin attacks these."""
    threat_model: str | None = None
    """The canned threat model that it follows; see `fedsim.threat_models`."""
    hides: tuple[Sight, ...] = ()
    """What its vantage would show, and this adversary is not shown."""


@dataclass(frozen=True)
class Scores:
    """`[scores]`."""

    lpips: LpipsNet = "squeeze"
    """The network of the LPIPS score."""
    protocols: tuple[Literal["corrected", "paper"], ...] = ("corrected",)
    """`corrected` is always there. `paper` adds LPIPS as the published evaluation of Huang et al. (NeurIPS 2021)
    computes it, for comparison with its tables alone; see `fedsim.metrics.published`."""


@dataclass(frozen=True)
class Runtime:
    """`[runtime]`."""

    grid: Literal["inline", "ray"] = "inline"
    """inline: clients and attacks one after another, in processes of this machine; ray: on a Ray cluster."""
    ray: RayAddress = "local"
    """Which Ray cluster: "local" starts one on this machine for the length of the run; "auto" takes the one that runs
    here; "ray://HOST:PORT" and "HOST:PORT" one elsewhere."""
    workers: Count | None = None
    """Ray: processes that play clients; as many as the cluster's processors and GPUs hold, if absent."""
    cpus_per_client: Positive = 1.0
    gpus_per_client: Fraction = 0.0
    """Of each such process. A part of a GPU caps the memory that the process can take of it."""
    cpus_per_attack: Positive = 1.0
    gpus_per_attack: Fraction = 0.0
    """Ray: of each attack."""
    attacks: Literal["after", "during"] = "after"
    """When attacks run: when all rounds are over, or, on Ray, beside them."""
    attack_timeout: Positive | None = None
    """Seconds that an attack may work on a job before it is ended and counts as failed. If absent: for ever."""
    client_timeout: Positive | None = None
    """Ray: seconds that a worker may take over a client's message before it is ended, and the client a dropout."""
    vectorized: Literal["off", "on", "auto"] = "off"
    """Inline: whether the clients of a round train as one batched computation, which differs from one by one by
    rounding. auto: where a short trial shows it faster."""
    checkpoint_every: Index = 1
    """Rounds between two checkpoints, from which a run that was broken off goes on. 0: none."""
    device: Device = "auto"
    threads: Count | None = None
    """CPU threads of torch in every process. If absent: inline, torch's own choice; on Ray, one."""
    isolation: Literal["process", "none"] = "process"
    """Attacks run in a process of their own, which gets the bytes of its jobs and nothing else; or, to look into a
    plugin with a debugger, in the simulation's own process."""


@dataclass(frozen=True)
class Logging:
    """`[logging]`."""

    sinks: tuple[Component, ...] = ()
    """Where rounds and scores go besides the run's folder."""


@dataclass(frozen=True)
class Experiment:
    """A whole experiment, validated."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    rounds: Count
    data: Data
    model: Component
    clients: Clients
    server: Server
    adversaries: tuple[AdversaryEntry, ...] = ()
    checkpoint: str | None = None
    """A safetensors file of parameters and BatchNorm statistics, as `save_rounds` writes it, to start from. Without
    one the seed determines the initial weights."""
    save_rounds: tuple[Index, ...] = ()
    """Rounds after which the model is stored, in the run folder's `checkpoints/`; 0 is the initial one."""
    scores: Scores = field(default_factory=Scores)
    runtime: Runtime = field(default_factory=Runtime)
    logging: Logging = field(default_factory=Logging)
