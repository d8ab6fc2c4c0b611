"""Honest clients of `secagg+` as their app runs them, from message to message. No test is in here."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

from flwr.app import ConfigRecord, RecordDict
from secagg.driving import LAYOUT, contribution
from secagg.sequences import Violation
from secagg.tampering import copied

from fedsim.clients import sealing
from fedsim.errors import ProtocolError
from fedsim.experiment import Component
from fedsim.secagg import graph
from fedsim.secagg.base import ROUND, Contribution, Refused, Terms
from fedsim.secagg.plus import SecAggPlus

MOST_EXAMPLES, MOST_STEPS = 8, 3


@contextmanager
def repeatable(number: int) -> Iterator[None]:
    """While a sequence is played: who is a neighbour of whom, else drawn from the operating system, is the same every
    time; and parties can be asked.
    """
    seeded = SimpleNamespace(SystemRandom=lambda: random.Random(number))
    with (
        mock.patch.object(graph, "secrets", seeded),
        mock.patch.object(sealing, "workbench", lambda experiment: experiment),
    ):
        yield


@lru_cache(64)
def update_of(client: int) -> Contribution:
    """A client's update, always the same; some of its coordinates are clipped."""
    return contribution(1000 + client)


def terms_of(clients: int) -> Terms:
    """What the sides agreed on."""
    return Terms(77, clients, MOST_EXAMPLES, MOST_STEPS, LAYOUT)


class Party:
    """One client over many rounds. What it keeps between messages is kept by the client's app.

    That app asks a workbench for the terms, which is there only within `repeatable`.
    answered: the (round, stage) that it answered. why: counts what it refused, in words without numbers.
    """

    def __init__(self, settings: SecAggPlus, terms: Terms, client: int, why: Counter[str]) -> None:
        self.client = client
        self.answered: Counter[tuple[int, str]] = Counter()
        self._why = why
        self._experiment: Any = SimpleNamespace(
            server=SimpleNamespace(secure_aggregation=Component("secagg+", settings)), terms=terms
        )
        self.forget()

    @property
    def memory(self) -> dict[str, Any]:
        """What it holds, all of it."""
        return {key: value for record in self._context.state.values() for key, value in record.items()}

    def forget(self) -> None:
        """Start anew, as after a loss of power."""
        self._context: Any = SimpleNamespace(node_id=self.client + 1, state=RecordDict())

    def answer(self, stage: str, query: ConfigRecord) -> ConfigRecord | None:
        """The reply to a query; None where it refuses. Raises Violation for anything else that it does."""

        def act() -> ConfigRecord:
            round_ = query.get(ROUND)
            if not isinstance(round_, int):  # as the client's app has it
                raise Refused("the query does not say for which round it is")
            half = sealing.half(self._experiment, round_, self._context)
            reply = half.answer(stage, copied(query))
            sealing.remember(half, self._context)
            self._note(round_, stage)
            return copied(reply)

        return self._guarded(act, stage)  # type: ignore[no-any-return]

    def seal(self, round_: int, along: ConfigRecord | None, model: bytes) -> RecordDict | None:
        """The masked vector; None where it refuses. Raises Violation for anything else that it does."""

        def act() -> RecordDict:
            half = sealing.half(self._experiment, round_, self._context)
            content = half.seal(update_of(self.client), None if along is None else copied(along), model)
            sealing.remember(half, self._context)
            self._note(round_, "train")
            return content

        return self._guarded(act, "train")  # type: ignore[no-any-return]

    def _note(self, round_: int, stage: str) -> None:
        self.answered[round_, stage] += 1
        if self.answered[round_, stage] > 1:
            raise Violation(f"client {self.client} answered '{stage}' of round {round_} twice")

    def _guarded(self, act: Any, stage: str) -> Any:
        try:
            return act()
        except ProtocolError as error:
            self._why[f"client, {stage}: {reason(error)}"] += 1
            return None
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"client {self.client} answers '{stage}' with {type(error).__name__}: {error}") from error


def reason(error: ProtocolError) -> str:
    """The words of an error, without the numbers in them."""
    words = str(error).split("(header")[0].split(" refuses in round ")[-1]
    return re.sub(r"-?\d+(, -?\d+)*", "#", words)[:110]
