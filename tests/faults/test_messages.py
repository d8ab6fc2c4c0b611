"""Updates that are none: refused by client and key, and the rest aggregates to the bits of a round without them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import pytest
import torch
from crashing import made, table
from faulty import WHOLE, Tally
from flwr.app import Message, RecordDict

from fedsim.clients.app import client_app
from fedsim.experiment import Experiment
from fedsim.grids.flower_internals import from_record, to_record
from fedsim.grids.inline import InlineGrid
from fedsim.runs import RoundRecord
from fedsim.server.app import Rounds

VICTIM, ROUND = 2, 2
"""The client whose replies are changed on their way, and in which round."""

EXPERIMENT = made(
    "messages",
    table(
        rounds=3,
        save_rounds=[],
        model={"name": "tiny_batchnorm"},
        clients={"count": 4, "local_steps": 2, "batch_size": 8},
        server={"strategy": "fedadam"},
    ),
)

Change = Callable[[list[Message], dict[int, list[Message]]], list[Message]]
"""Gets the replies of the round and those of all rounds before; returns what arrives."""


class Wire(InlineGrid):
    """Replies may be others when they arrive."""

    def __init__(self, experiment: Experiment, change: Change) -> None:
        super().__init__(client_app(experiment), experiment.clients.count)
        self._change, self._before = change, dict[int, list[Message]]()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = list(self.pull_messages(self.push_messages(messages)))
        round_ = len(self._before) + 1
        self._before[round_] = [deepcopy(reply) for reply in replies]
        return self._change(replies, self._before) if round_ == ROUND else replies


def trained(change: Change) -> tuple[dict[str, bytes], list[RoundRecord]]:
    """The bits of the model at the end, and what was said of the rounds."""
    rounds, records = Rounds(EXPERIMENT), list[RoundRecord]()
    rounds.run(Wire(EXPERIMENT, change), records.append)
    both = {**rounds.parameters, **rounds.running}
    return {name: value.numpy().tobytes() for name, value in both.items()}, records


def altered(change: Callable[[RecordDict], Any]) -> Change:
    """The victim's content is changed."""

    def alter(replies: list[Message], before: dict[int, list[Message]]) -> list[Message]:
        change(replies[VICTIM].content)
        return replies

    return alter


def entry(name: str, change: Callable[[torch.Tensor], torch.Tensor], record: str = "update") -> Change:
    """One tensor of the victim's is changed."""

    def alter(content: RecordDict) -> None:
        held = dict(from_record(content[record]))  # type: ignore[arg-type]
        held[name] = change(held[name].clone())
        content[record] = to_record(held)

    return altered(alter)


def one_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """In the midst of good ones."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return change


def missing(name: str) -> Change:
    def alter(content: RecordDict) -> None:
        held = dict(from_record(content["update"]))  # type: ignore[arg-type]
        del held[name]
        content["update"] = to_record(held)

    return altered(alter)


def replayed(replies: list[Message], before: dict[int, list[Message]]) -> list[Message]:
    """What the client sent a round ago, again in the place of what it sends now."""
    return [*replies[:VICTIM], before[ROUND - 1][VICTIM], *replies[VICTIM + 1 :]]


def lost(replies: list[Message], before: dict[int, list[Message]]) -> list[Message]:
    return [*replies[:VICTIM], *replies[VICTIM + 1 :]]


def doubled(replies: list[Message], before: dict[int, list[Message]]) -> list[Message]:
    """Once more at the end, with other numbers."""
    again = deepcopy(replies[VICTIM])
    held = from_record(again.content["update"])  # type: ignore[arg-type]
    again.content["update"] = to_record({name: 3 * value for name, value in held.items()})
    return [*replies, again]


LAST = "fc.bias"

CASES: dict[str, tuple[Change, str]] = {
    "NaN": (entry(LAST, one_value(float("nan"))), f"update/{LAST} holds NaN"),
    "Inf": (entry(LAST, one_value(float("-inf"))), f"update/{LAST} holds Inf"),
    "1e38": (entry(LAST, one_value(1e38)), f"update/{LAST} holds 1e+38"),
    "wrong shape": (entry(LAST, lambda tensor: tensor[:-1]), f"update/{LAST} has shape (9,), not (10,)"),
    "wrong type": (entry(LAST, torch.Tensor.double), f"update/{LAST} has type torch.float64"),
    "missing key": (missing(LAST), f"update/{LAST} is missing"),
    "empty": (altered(RecordDict.clear), "record 'update' is missing"),
    "replayed": (replayed, "answers another request than this round's"),
}


@pytest.fixture(scope="module")
def without() -> tuple[dict[str, bytes], list[RoundRecord]]:
    """What becomes of the rounds where the victim's reply does not arrive."""
    return trained(lost)


@pytest.mark.parametrize("case", CASES if WHOLE else ["NaN", "replayed"])
def test_a_bad_update_is_refused_and_the_others_are_aggregated(case: str, without: Any, tally: Tally) -> None:
    tally("NaN, Inf, 1e38, wrong shape or type, missing, empty, replayed, duplicate update")
    change, words = CASES[case]
    model, records = trained(change)
    assert model == without[0]
    assert records[ROUND].clients == (0, 1, 3)
    ((client, reason),) = [(one.client, one.reason) for one in records[ROUND].dropouts]
    assert client == VICTIM and words in reason
    assert not any(record.dropouts or record.skipped for record in records if record.round != ROUND)
    assert [one.client for one in without[1][ROUND].dropouts] == [VICTIM]


def test_of_two_updates_of_a_client_the_first_counts(without: Any, tally: Tally) -> None:
    tally("NaN, Inf, 1e38, wrong shape or type, missing, empty, replayed, duplicate update")
    undisturbed, _ = trained(lambda replies, before: replies)
    model, records = trained(doubled)
    assert model == undisturbed != without[0]
    assert records[ROUND].clients == (0, 1, 2, 3)
