"""The server's half of `ideal`: what the trusted party does. It adds up integers and lets nothing out but their sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, RecordDict

from fedsim.secagg.base import Ask, RoundClosed, Terms, Total
from fedsim.secagg.vectors import RingSum

if TYPE_CHECKING:
    from fedsim.secagg.ideal import Ideal


class PlainUnmasking:
    """Adds vectors that no mask hides. Fewer than `min_survivors` close the round."""

    def __init__(self, settings: Ideal, terms: Terms, round_: int, clients: Iterable[int], model: bytes) -> None:
        self._settings, self._clients = settings, tuple(sorted(clients))
        self._codec = settings.codec(terms)
        self._sum = RingSum(self._codec, self._clients)

    def prepare(self, ask: Ask) -> Mapping[int, ConfigRecord | None]:
        """Nothing to agree on: every client may train at once."""
        return dict.fromkeys(self._clients)

    def take(self, client: int, content: RecordDict) -> None:
        """Add one vector. Raises ProtocolError."""
        self._sum.add(client, content)

    def open(self, ask: Ask) -> Total:
        """The total of those that sent a vector. Raises RoundClosed for too few."""
        survivors, needed = self._sum.close(), self._settings.min_survivors
        if len(survivors) < needed:
            raise RoundClosed(f"{len(survivors)} of {len(self._clients)} clients are left, and {needed} are needed")
        return self._codec.decode(self._sum.value, survivors)
