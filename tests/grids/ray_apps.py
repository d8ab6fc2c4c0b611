"""Client apps for tests of the Ray grid. Workers import this module, so that it is one of its own."""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from flwr.app import Array, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.clients.app import client_app
from fedsim.experiment import Experiment
from fedsim.grids.flower_internals import from_record, to_record


def remembering() -> ClientApp:
    """Counts its calls in all three kinds of state, and sends back twice what it got. Client 1 fails on odd calls,
    after it has changed its state.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        calls = int(context.state.get("numbers", MetricRecord({"calls": 0}))["calls"]) + 1  # type: ignore[index]
        context.state["numbers"] = MetricRecord({"calls": calls})
        context.state["words"] = ConfigRecord({"last": f"call {calls}", "raw": b"\x00\xff", "flags": [True, False]})
        sent = from_record(message.content["arrays"])  # type: ignore[arg-type]
        total = sent["w"] * calls + context.node_id
        context.state["arrays"] = to_record({"total": total, "half": total.to(torch.bfloat16)})
        if context.node_id == 2 and calls % 2:
            raise RuntimeError(f"no memory left at call {calls}")
        if context.node_id == 3:
            warnings.warn("this client is tired", stacklevel=1)
            logging.getLogger("some.library").warning("and so is its library")
        reply = RecordDict({"arrays": to_record({"w": 2 * sent["w"]}), "numbers": MetricRecord({"calls": calls})})
        reply["arrays"]["plain"] = Array(sent["w"].numpy() + 1)  # type: ignore[index]
        return Message(reply, reply_to=message)

    return app


def several(experiments: Mapping[str, Experiment]) -> Callable[[Message, Context], Message]:
    """Clients of several experiments; the node's configuration says of which."""
    apps = {case: client_app(experiment) for case, experiment in experiments.items()}

    def play(message: Message, context: Context) -> Message:
        return apps[str(context.node_config["case"])](message, context)

    return play


def deadly(folder: str, node: int, times: int) -> ClientApp:
    """Kills its process on messages to a node, the first so many times that any process gets one."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        marks = Path(folder)
        if context.node_id == node and len(list(marks.iterdir())) < times:
            (marks / f"{time.time_ns()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Message(RecordDict({"numbers": MetricRecord({"node": context.node_id})}), reply_to=message)

    return app


def hanging(node: int) -> ClientApp:
    """Never answers the messages to a node."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_id == node:
            time.sleep(3600)
        return Message(RecordDict({"numbers": MetricRecord({"node": context.node_id})}), reply_to=message)

    return app


def slow(folder: str) -> ClientApp:
    """Leaves word of its process, takes a while, and says what it got."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        (Path(folder) / f"{os.environ.get('RAY_RAYLET_PID', '0')}-{os.getpid()}-{context.node_id}").touch()
        time.sleep(0.3)
        sent = from_record(message.content["arrays"])  # type: ignore[arg-type]
        return Message(RecordDict({"arrays": to_record({"w": sent["w"] * context.node_id})}), reply_to=message)

    return app


def broken() -> ClientApp:
    """Cannot be made."""
    raise OSError("there is no such file")
