"""The client's half of `secagg+`: who may ask what when, and what is remembered between two messages of a round."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, RecordDict

from fedsim.clients.masking_stages import Keyed, Sealed, Seat, Shared, Unstarted
from fedsim.errors import ProtocolError
from fedsim.secagg.base import ROUND, Contribution, Refused, Terms

if TYPE_CHECKING:
    from fedsim.secagg.plus import SecAggPlus

State = Unstarted | Keyed | Shared | Sealed

REMEMBERED: dict[str, type[Keyed] | type[Shared] | type[Sealed]] = {one.STAGE: one for one in (Keyed, Shared, Sealed)}
"""The states that are written to memory, by the stage that comes next in them."""

NEXT = "next"
"""The key, in memory, of the stage that comes next."""


class PairwiseMasking:
    """One client in one round of `secagg+`.

    memory holds secret keys between two messages. It is empty as soon as the client has helped to unmask, or belongs to
    an earlier round: then it is taken for empty.
    """

    def __init__(self, settings: SecAggPlus, terms: Terms, client: int, round_: int, memory: ConfigRecord) -> None:
        self._seat = Seat(settings, terms, client, round_)
        self.memory = memory

    def answer(self, stage: str, query: ConfigRecord) -> ConfigRecord:
        """The reply to a query of the stage. Raises Refused, with the client and the reason."""
        settings = self._seat.settings
        if stage not in (*settings.before, *settings.after):
            raise self._seat.refusal(f"'{stage}' is nothing that a client is asked for")
        state = self._state(stage)
        assert not isinstance(state, Shared)  # "train" is not among those stages
        try:
            reply, after = state.answer(self._seat, query)
        except Refused:
            raise
        except ProtocolError as error:
            raise self._seat.refusal(f"'{stage}': {error}") from None
        self._remember(after)
        return reply

    def seal(self, what: Contribution, along: ConfigRecord | None, model: bytes) -> RecordDict:
        """The masked vector of a contribution. Raises Refused, and ProtocolError for what cannot be summed."""
        state = self._state(Shared.STAGE)
        assert isinstance(state, Shared)
        reply, after = state.seal(self._seat, what, along, model)
        self._remember(after)
        return reply

    def _state(self, stage: str) -> State:
        """The state, for a message of `stage`. Raises Refused for one that comes out of turn."""
        state, seat = self._recalled(), self._seat
        if stage == state.STAGE:
            return state
        order = [one.STAGE for one in (Unstarted, *REMEMBERED.values())]
        if isinstance(state, Unstarted):
            why = f"it is asked for '{stage}', but holds nothing of this round, which has not begun or is over"
        elif order.index(stage) < order.index(state.STAGE):
            why = f"it is asked for '{stage}' a second time in the same round"
        else:
            why = f"it is asked for '{stage}' before '{state.STAGE}'"
        raise seat.refusal(why)

    def _recalled(self) -> State:
        seat, held = self._seat, self.memory
        round_ = held.get(ROUND, seat.round - 1)
        assert isinstance(round_, int)
        if round_ > seat.round:
            raise seat.refusal(f"the message is of round {seat.round}, but it is in round {round_} already")
        if round_ < seat.round:
            return Unstarted()
        kind = REMEMBERED[str(held[NEXT])]
        values = (held[one.name] for one in fields(kind))
        return kind(*(tuple(value) if isinstance(value, list) else value for value in values))  # type: ignore[arg-type]

    def _remember(self, state: Keyed | Shared | Sealed | None) -> None:
        """Forget everything before, and keep a state; None: keep nothing."""
        if state is None:
            self.memory = ConfigRecord()
            return
        kept = {one.name: getattr(state, one.name) for one in fields(state)}
        self.memory = ConfigRecord(
            {
                NEXT: state.STAGE,
                ROUND: self._seat.round,
                **{name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()},
            }
        )
