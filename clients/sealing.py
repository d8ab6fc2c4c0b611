"""What a client's app does around its half of a secure aggregation: memory between messages, metrics, dropping out."""

from __future__ import annotations

import torch
from flwr.app import ConfigRecord, Context, MetricRecord, RecordDict

from fedsim import plugins, protocol, seeding
from fedsim.clients.workbench import workbench
from fedsim.experiment import Experiment
from fedsim.grids.watched import client_at
from fedsim.secagg.base import ROUND, Contribution, DroppedOut, Masking, Refused

_MEMORY = "secure-aggregation"
_OWNER = "secure-aggregation-round"


def half(experiment: Experiment, round_: int, context: Context) -> Masking:
    """The client's half for a message of this round, with what it remembers of the round's earlier messages.

    It is called as the server calls it, by its node, whatever partition of the data it has.
    """
    mode = experiment.server.secure_aggregation
    assert mode is not None
    memory, last = context.state.get(_MEMORY), _last_round(context)
    if last > round_ or (last == round_ and not memory):
        raise Refused(f"round {round_} is over for this client, and it takes part in a round once")
    if last < round_ or not isinstance(memory, ConfigRecord):
        # What is left of a round that went on without this client is of no use in another.
        memory = ConfigRecord()
        context.state[_OWNER], context.state[_MEMORY] = ConfigRecord({ROUND: round_}), memory
    made: Masking = plugins.load("maskings", mode.name)(
        mode.settings, workbench(experiment).terms, client_at(context.node_id), round_, memory
    )
    return made


def _last_round(context: Context) -> int:
    """The latest round in which the client has answered or refused anything; 0 before the first."""
    owner = context.state.get(_OWNER)
    last = owner[ROUND] if isinstance(owner, ConfigRecord) else 0
    return last if isinstance(last, int) else 0


def remember(half: Masking, context: Context) -> None:
    """Keep what the half must know at its next message. Flower keeps a client's state, and shows it to nobody."""
    context.state[_MEMORY] = half.memory


def sealed(half: Masking, what: Contribution, along: ConfigRecord | None, model: bytes, context: Context) -> RecordDict:
    """What leaves the client in the place of its update. A client that cannot seal it, or refuses, is out of the round
    and forgets the round's secrets.
    """
    try:
        out = half.seal(what, along, model)
    except Exception:
        context.state[_MEMORY] = ConfigRecord()
        raise
    remember(half, context)
    return out


def with_metrics(experiment: Experiment, sealed: RecordDict, numbers: MetricRecord) -> RecordDict:
    """A train reply of sealed records: of its numbers those leave the client that the file asks for."""
    mode = experiment.server.secure_aggregation
    assert mode is not None
    asked = {key for one in mode.settings.metrics for key in protocol.CLEAR[one]}
    told = {key: value for key, value in numbers.items() if key in asked}
    if told:
        sealed[protocol.METRICS] = MetricRecord(told)
    return sealed


def leave(experiment: Experiment, client: int, round_: int, stage: str, context: Context) -> None:
    """Forget the round's secrets and raise DroppedOut, where `clients.dropout` has the client leave the round at this
    stage or before it.
    """
    rate, mode = experiment.clients.dropout, experiment.server.secure_aggregation
    if not rate:
        return
    rng = seeding.generator(experiment.seed, "dropout", round_, client)
    stages = (*mode.settings.before, protocol.UPDATE, *mode.settings.after) if mode else (protocol.UPDATE,)
    drawn, place = float(torch.rand((), generator=rng)), int(torch.randint(len(stages), (), generator=rng))
    if drawn < rate and stages.index(stage) >= place:
        context.state[_MEMORY] = ConfigRecord()
        raise DroppedOut(f"left the round at '{stages[place]}', as clients.dropout = {rate:g} has it")
