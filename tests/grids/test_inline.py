from __future__ import annotations

from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.grids.flower_internals import to_record
from fedsim.grids.inline import InlineGrid
from fedsim.grids.watched import client_of


def echo_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            raise RuntimeError("no memory left")
        calls = context.state.get("calls", MetricRecord({"n": 0}))
        context.state["calls"] = MetricRecord({"n": calls["n"] + 1})  # type: ignore[index,operator]
        message.content["config"]["spoilt"] = True  # type: ignore[index,call-overload]
        message.content["extra"] = MetricRecord({"n": 1})
        return Message(RecordDict({"calls": context.state["calls"]}), reply_to=message)

    return app


def requests(grid: InlineGrid, content: RecordDict) -> list[Message]:
    return [Message(content, dst_node_id=node, message_type="train") for node in grid.get_node_ids()]


def content() -> RecordDict:
    return RecordDict({"arrays": to_record({"w": torch.ones(2)}), "config": ConfigRecord({"server-round": 1})})


def test_every_client_answers_and_one_that_raises_is_answered_for() -> None:
    grid = InlineGrid(echo_app(), 3)
    replies = list(grid.send_and_receive(requests(grid, content())))
    assert [client_of(reply) for reply in replies] == [0, 1, 2]
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert "RuntimeError: no memory left" in str(replies[1].error.reason)


def test_a_client_cannot_change_what_the_next_one_gets() -> None:
    shared = content()
    seen: list[Any] = []
    grid = InlineGrid(echo_app(), 3)
    grid.watch(lambda m: seen.append(dict(m.content["config"])) if m.metadata.dst_node_id else None)  # type: ignore[arg-type]
    grid.send_and_receive(requests(grid, shared))
    assert seen == [{"server-round": 1}] * 3
    assert "extra" not in shared
    assert "spoilt" not in shared["config"]  # type: ignore[operator]


def test_state_is_kept_from_round_to_round_for_each_client() -> None:
    grid = InlineGrid(echo_app(), 3)
    for _ in range(2):
        replies = list(grid.send_and_receive(requests(grid, content())))
    assert replies[0].content["calls"]["n"] == 2  # type: ignore[index,call-overload]


def test_observers_see_requests_and_replies_in_order() -> None:
    grid, seen = InlineGrid(echo_app(), 2), []
    grid.watch(lambda message: seen.append((message.metadata.src_node_id, message.metadata.dst_node_id)))
    grid.send_and_receive(requests(grid, content()))
    assert seen == [(0, 1), (1, 0), (0, 2), (2, 0)]


def test_push_then_pull_gives_each_reply_once() -> None:
    grid = InlineGrid(echo_app(), 1)
    ids = list(grid.push_messages(requests(grid, content())))
    assert len(list(grid.pull_messages(ids))) == 1
    assert list(grid.pull_messages(ids)) == []


def test_a_node_that_is_not_there_is_an_error_reply() -> None:
    grid = InlineGrid(echo_app(), 1)
    (reply,) = grid.send_and_receive([Message(content(), dst_node_id=9, message_type="train")])
    assert reply.has_error()
