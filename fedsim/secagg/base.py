"""What the two halves of a secure aggregation share: what goes in, what comes out, and how they talk.

A mode has a frozen dataclass of settings (entry point group `fedsim.secure_aggregations`), a client's half
(`fedsim.maskings`) and a server's half (`fedsim.unmaskings`), all by the same name. The way of a round:

    server.prepare(ask)            queries before training, stage by stage; returns what goes with each train request
    client.answer(stage, ...)      ... answered by the clients
    client.seal(contribution)      after training: what leaves the client in the place of its update
    server.take(client, sealed)    as they arrive
    server.open(ask)               queries after training; the total of the clients that are left

Either half ends the round by raising `RoundClosed`: then nothing of an aggregate has been released.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from fedsim.errors import ProtocolError

if TYPE_CHECKING:
    from flwr.app import ConfigRecord, RecordDict
    from numpy.typing import NDArray
    from torch import Tensor

RECORD = "secagg"
"""The ConfigRecord of every query, of its reply, and of a train request: bytes, numbers and lists of them by name."""

SEALED = "sealed"
"""The ArrayRecord of a train reply in the place of `update`, `buffers` and the numbers of `metrics`."""

STAGES = ("keys", "shares", "unmask", "decrypt")
"""Every query that there is; a mode uses some of them. A query's message type is `query.STAGE`."""

ROUND = "round"
"""The key, in a query's record, of the round that it belongs to."""


class RoundClosed(ProtocolError):
    """A secure aggregation cannot be finished safely. Nothing of a sum is released; the model stays as it was."""


class Refused(ProtocolError):
    """A client refuses what a server asks, because an honest one would not ask it. The words say what and why."""


class DroppedOut(ProtocolError):
    """A client that leaves the round on purpose, as `clients.dropout` has it."""


@dataclass(frozen=True)
class Layout:
    """The shapes of what is summed: the parameters of an update, and the BatchNorm statistics that go with it."""

    update: Mapping[str, tuple[int, ...]]
    statistics: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        """Coordinates of all of it."""
        return sum(math.prod(shape) for _, _, shape in self._tensors())

    def flat(self, what: Contribution) -> Iterator[tuple[str, str, NDArray[Any]]]:
        """Of a contribution (part, path, coordinates), one-dimensional, in order. Raises ProtocolError for a tensor
        that is missing or of another shape.
        """
        parts = {"update": what.update, "statistics": what.statistics}
        for part, name, shape in self._tensors():
            value = parts[part].get(name)
            if value is None:
                raise ProtocolError(f"{part}/{name} is missing")
            if tuple(value.shape) != tuple(shape):
                raise ProtocolError(f"{part}/{name} has shape {tuple(value.shape)}, not {tuple(shape)}")
            yield part, f"{part}/{name}", value.detach().cpu().contiguous().reshape(-1).numpy()

    def unflattened(
        self, values: NDArray[Any], read: Callable[[str, NDArray[Any]], NDArray[Any]]
    ) -> dict[str, dict[str, Tensor]]:
        """The tensors in a vector, by part and name. read: what a part's coordinates stand for."""
        import torch

        found: dict[str, dict[str, Tensor]] = {"update": {}, "statistics": {}}
        place = 0
        for part, name, shape in self._tensors():
            length = math.prod(shape)
            found[part][name] = torch.from_numpy(read(part, values[place : place + length])).reshape(shape)
            place += length
        return found

    def _tensors(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        for part, shapes in (("update", self.update), ("statistics", self.statistics)):
            for name, shape in shapes.items():
                yield part, name, shape


@dataclass(frozen=True)
class Terms:
    """What both sides know before a round; public.

    run: a number of the run. clients: drawn for a round. most_examples: the most that any client weighs; one with more
    weighs as much as this. most_steps: the most local steps of any client.
    """

    run: int
    clients: int
    most_examples: int
    most_steps: int
    layout: Layout


@dataclass(frozen=True)
class Contribution:
    """What a client would send if nothing were hidden. Tensors are float32, of the layout's names and shapes."""

    update: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor]
    examples: int
    steps: int


@dataclass(frozen=True)
class Total:
    """What the server learns of a round.

    clients: whose contributions it is made of, in order. update, statistics: their means weighted by examples, float64.
    examples: the sum. steps: the weighted mean. clipped: how many coordinates were too large and were cut off.
    error: by how much a coordinate of `update` may be off, because of quantisation; None where there is no such bound.
    sealed: the ring sum itself, one-dimensional, for tests of bit-equality; None where a mode has none.
    """

    clients: tuple[int, ...]
    update: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor]
    examples: int
    steps: float
    clipped: int = 0
    error: float | None = None
    sealed: Any = field(default=None, repr=False, compare=False)


Ask = Callable[[str, Mapping[int, "ConfigRecord"]], Iterable[tuple[int, "ConfigRecord"]]]
"""`ask(stage, {client: query})` yields (client, reply) as they arrive. Clients that fail are left out, and noted as
dropouts by whoever provides it."""


class Settings(Protocol):
    """The settings of a mode."""

    before: tuple[str, ...]
    """The stages before training, in order."""
    after: tuple[str, ...]
    """The stages after training, in order."""
    metrics: tuple[str, ...]
    """Numbers that leave a client in the clear besides: "train_loss", "epsilon". Nothing by default."""

    def problems(self, clients: int, most_examples: int | None, most_steps: int | None) -> Iterable[tuple[str, str]]:
        """(key, what is wrong with it and what to do) for rounds of so many clients; None: not known yet."""
        ...

    def bound_of_one(self, terms: Terms) -> float:
        """By how much a coordinate of one client's update may be off that is taken out of a sum."""
        ...

    def facts(self, terms: Terms) -> Mapping[str, Any]:
        """JSON data for the manifest: what was derived from the settings, such as threshold, scale and error bound."""
        ...


class Masking(Protocol):
    """A client's half for one round. Made anew for every message: what it must remember is in `memory`.

    __init__(settings, terms, client, round_, memory): memory is the record that the client kept since its last message
    of this round; empty at first.
    """

    memory: ConfigRecord
    """To be kept until the client's next message of the round; never leaves the client. Empty when all is over."""

    def answer(self, stage: str, query: ConfigRecord) -> ConfigRecord:
        """The reply to a query. Raises Refused."""
        ...

    def seal(self, what: Contribution, along: ConfigRecord | None, model: bytes) -> RecordDict:
        """What leaves the client in the place of its update: the records of its train reply.

        along: what came with the train request. model: `binding` of the broadcast that the client got.
        Raises Refused, and ProtocolError for what cannot be summed (NaN).
        """
        ...


class Unmasking(Protocol):
    """The server's half for one round.

    __init__(settings, terms, round_, clients, model): clients: drawn for the round. model: `binding` of the broadcast.
    """

    def prepare(self, ask: Ask) -> Mapping[int, ConfigRecord | None]:
        """Run the stages before training: what goes along with the train request of each client that is still there.
        Raises RoundClosed.
        """
        ...

    def take(self, client: int, content: RecordDict) -> None:
        """Add one sealed vector to the sum, as it arrives. Raises ProtocolError for one that is not what was agreed;
        the sum is as it was then.
        """
        ...

    def open(self, ask: Ask) -> Total:
        """Run the stages after training. Raises RoundClosed."""
        ...


def binding(tensors: Mapping[str, Tensor], statistics: Mapping[str, Tensor]) -> bytes:
    """SHA-256 over a broadcast: names, shapes and bytes of the parameters and statistics, 32 bytes.

    It goes into the derivation of every mask, so that the masks of clients that were sent different models do not
    cancel (against Pasquini et al., CCS 2022).
    """
    import hashlib

    state = hashlib.sha256()
    for part in (tensors, statistics):
        state.update(len(part).to_bytes(8, "big"))
        for name, value in part.items():
            head = f"{name}\x00{value.dtype}\x00{tuple(value.shape)}".encode()
            state.update(len(head).to_bytes(8, "big"))
            state.update(head)
            state.update(value.detach().cpu().contiguous().reshape(-1).numpy().data.cast("B"))
    return state.digest()
