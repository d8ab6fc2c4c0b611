"""The Flower ClientApp: a train request in, an update out.

`client_app(experiment)` makes one for a simulation. `app` is the same for a Flower deployment (`flwr run`), where the
experiment's name or file comes from the run configuration.
"""

from __future__ import annotations

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

import fedsim.grids.flower_internals as flower
from fedsim import batchnorm, protocol
from fedsim.clients.workbench import workbench
from fedsim.experiment import Experiment
from fedsim.grids.deployment import experiment_of


def client_app(experiment: Experiment | None = None) -> ClientApp:
    """A ClientApp that plays client `node_config["partition-id"]` of the experiment."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _train(experiment or experiment_of(context), message, context)

    return app


def _train(experiment: Experiment, message: Message, context: Context) -> Message:
    place = workbench(experiment)
    client = int(context.node_config["partition-id"])
    content = message.content
    round_ = int(_config(content)[protocol.ROUND])  # type: ignore[arg-type]
    parameters = flower.tensors_in(content, protocol.ARRAYS)
    # Under `local` the server sends no statistics, and the client goes on with the ones that it kept.
    held = flower.tensors_in(content, protocol.BUFFERS) or flower.tensors_in(context.state, protocol.BUFFERS)
    policy = experiment.clients.batchnorm

    trained, examples = place.train(client, round_, parameters, held)
    if policy == "local":
        context.state[protocol.BUFFERS] = flower.to_record(batchnorm.statistics(place.model))
    update, kept = place.perturb(trained.update, client, round_, parameters, _remembered(context))
    kept, spent = place.spend(client, kept)
    for position, memory in kept.items():
        # Flower keeps a client's state from round to round.
        context.state[f"{_MEMORY}{position}"] = flower.to_record(memory)

    reply = RecordDict({protocol.UPDATE: flower.to_record(update.tensors)})
    statistics = batchnorm.sent(policy, place.model, trained.passes)
    if statistics:
        reply[protocol.BUFFERS] = flower.to_record(statistics)
    numbers = MetricRecord({protocol.NUM_EXAMPLES: examples, protocol.NUM_STEPS: trained.steps})
    if trained.loss is not None:
        numbers[protocol.TRAIN_LOSS] = trained.loss
    if spent is not None:
        numbers[protocol.EPSILON], numbers[protocol.DELTA] = spent
    reply[protocol.METRICS] = numbers
    return Message(reply, reply_to=message)


_MEMORY = "memory-of-defense-"


def _remembered(context: Context) -> dict[int, dict[str, Tensor]]:
    """What the client's defenses kept of earlier rounds, by their place."""
    return {
        int(key.removeprefix(_MEMORY)): flower.tensors_in(context.state, key)
        for key in context.state
        if key.startswith(_MEMORY)
    }


def _config(content: RecordDict) -> ConfigRecord:
    return next(iter(content.config_records.values()))


app = client_app()
