"""The client's half of `ideal`: its integers, for a party that everybody trusts to tell the server the sum alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, RecordDict

from fedsim.secagg.base import Contribution, Refused, Terms
from fedsim.secagg.vectors import sealed

if TYPE_CHECKING:
    from fedsim.secagg.ideal import Ideal


class PlainMasking:
    """Seals without a mask, in the record that `secagg+` uses. Nothing is asked before or after, and nothing kept."""

    def __init__(self, settings: Ideal, terms: Terms, client: int, round_: int, memory: ConfigRecord) -> None:
        self._settings, self._terms, self._client = settings, terms, client
        self.memory = ConfigRecord()

    def answer(self, stage: str, query: ConfigRecord) -> ConfigRecord:
        """Refused: there is nothing to ask."""
        raise Refused(f"client {self._client}: asked for '{stage}', but under 'ideal' no client is asked for anything")

    def seal(self, what: Contribution, along: ConfigRecord | None, model: bytes) -> RecordDict:
        """The ring vector of a contribution. Raises ProtocolError for what cannot be summed."""
        return sealed(self._settings.codec(self._terms).encode(what))
