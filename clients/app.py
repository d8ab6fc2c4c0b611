"""The Flower ClientApp: a train request in, an update out; under secure aggregation, a masked one, and its queries.

`client_app(experiment)` makes one for a simulation. `app` is the same for a Flower deployment (`flwr run`), where the
experiment's name or file comes from the run configuration.
"""

from __future__ import annotations

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

import fedsim.grids.flower_internals as flower
from fedsim import batchnorm, protocol
from fedsim.clients import sealing
from fedsim.clients.requests import TrainRequest
from fedsim.clients.workbench import workbench
from fedsim.experiment import Experiment
from fedsim.grids.deployment import experiment_of
from fedsim.secagg.base import RECORD, ROUND, STAGES, Contribution, Refused, binding


def client_app(experiment: Experiment | None = None) -> ClientApp:
    """A ClientApp that plays client `node_config["partition-id"]` of the experiment."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _train(experiment or experiment_of(context), message, context)

    for stage in STAGES:

        @app.query(stage)
        def answer(message: Message, context: Context, stage: str = stage) -> Message:
            return _answer(experiment or experiment_of(context), stage, message, context)

    return app


def _train(experiment: Experiment, message: Message, context: Context) -> Message:
    place = workbench(experiment)
    client = int(context.node_config["partition-id"])
    content = message.content
    request = TrainRequest.read(content, experiment)
    round_, parameters, sent = request.round, request.parameters, request.statistics
    sealing.leave(experiment, client, round_, protocol.UPDATE, context)
    # Under `local` the server sends no statistics, and the client goes on with the ones that it kept.
    held = sent or flower.tensors_in(context.state, protocol.BUFFERS)
    policy = experiment.clients.batchnorm

    trained, examples = place.train(client, round_, parameters, held)
    own = batchnorm.statistics(place.model) if policy == "local" else {}
    update, kept = place.perturb(trained.update, client, round_, parameters, remembered(context))
    kept, spent = place.spend(client, kept)
    statistics = batchnorm.sent(policy, place.model, trained.passes)
    numbers = MetricRecord({protocol.NUM_EXAMPLES: examples, protocol.NUM_STEPS: trained.steps})
    if trained.loss is not None:
        numbers[protocol.TRAIN_LOSS] = trained.loss
    if spent is not None:
        numbers[protocol.EPSILON], numbers[protocol.DELTA] = spent
    if experiment.server.secure_aggregation is not None:
        half = sealing.half(experiment, round_, context)
        what = Contribution(update.tensors, statistics, examples, trained.steps)
        along = content.config_records.get(RECORD)
        sealed = sealing.sealed(half, what, along, binding(parameters, sent), context)
        reply = sealing.with_metrics(experiment, sealed, numbers)
    else:
        reply = RecordDict({protocol.UPDATE: flower.to_record(update.tensors)})
        if statistics:
            reply[protocol.BUFFERS] = flower.to_record(statistics)
        reply[protocol.METRICS] = numbers
    # Flower keeps a client's state from round to round. Only now: a request that was refused leaves it as it is.
    if policy == "local":
        context.state[protocol.BUFFERS] = flower.to_record(own)
    for position, memory in kept.items():
        context.state[f"{_MEMORY}{position}"] = flower.to_record(memory)
    return Message(reply, reply_to=message)


def _answer(experiment: Experiment, stage: str, message: Message, context: Context) -> Message:
    """The answer to a query of the secure aggregation."""
    query = message.content.get(RECORD)
    if experiment.server.secure_aggregation is None or not isinstance(query, ConfigRecord):
        raise Refused(f"a query '{stage}' with a record '{RECORD}' belongs to secure aggregation, and this is none")
    client, round_ = int(context.node_config["partition-id"]), query.get(ROUND)
    if not isinstance(round_, int):
        raise Refused(f"the query '{stage}' does not say for which round it is")
    sealing.leave(experiment, client, round_, stage, context)
    half = sealing.half(experiment, round_, context)
    record = half.answer(stage, query)
    sealing.remember(half, context)
    return Message(RecordDict({RECORD: record}), reply_to=message)


_MEMORY = "memory-of-defense-"


def remembered(context: Context) -> dict[int, dict[str, Tensor]]:
    """What a client's defenses kept of earlier rounds, by their place in its list."""
    return {
        int(key.removeprefix(_MEMORY)): flower.tensors_in(context.state, key)
        for key in context.state
        if key.startswith(_MEMORY)
    }


app = client_app()
