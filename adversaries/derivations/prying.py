"""The derivation `prying`: a server that asks, at the end of a round, for what an honest one would not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from fedsim.adversaries.base import Derived, Observation, Situation

STAGE = "unmask"
"""The stage at which shares of secrets are opened."""


@dataclass(frozen=True)
class Prying:
    """Asks the clients of `secagg+` for shares of both secrets of a target, which together unmask its vector.

    Source: the malicious server of Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine
    Learning" (CCS 2017), against which a holder gives one of the two shares, and the threshold is above
    half of the holders.

    The vector of a client is hidden by a self mask, whose seed the holders open if the client survived, and by pairwise
    masks, whose key they open if it dropped out. With several targets, the first of them is meant. trick: what the
    server says instead of the truth.
        both_shares: the target survived and dropped out. Everybody refuses.
        fake_dropout: the target, which sent its vector, dropped out. The target refuses; the others know no better and
            open its key, but nobody opens its self mask, which still hides the vector.
        split_view: it survived, to every other client; it dropped out, to the rest. All answer, but half of the holders
            give a share of the one secret and half of the other, and twice the threshold is more than all holders and
            the colluders besides: one of the two cannot be restored.
        isolate: everybody but the target dropped out. All refuse: those that are asked did not drop out, and the target
            is left with too few survivors.

    Nothing is derived. Which clients refused, and in which words, is among the dropouts of the round.
    """

    trick: Literal["both_shares", "fake_dropout", "split_view", "isolate"] = "both_shares"

    needs: ClassVar[frozenset[str]] = frozenset({"global_model"})
    powers: ClassVar[frozenset[str]] = frozenset({"alter_requests"})
    gives: ClassVar[frozenset[str]] = frozenset()

    def objection(self, situation: Situation) -> str | None:
        """Only in `secagg+` clients hold shares that they could be asked for."""
        if situation.secure_aggregation == "secagg+":
            return None
        return (
            f"with secure_aggregation = '{situation.secure_aggregation}' no client is asked for shares; use 'secagg+'"
        )

    def alter_request(
        self, round_: int, client: int, targets: Sequence[int], stage: str, request: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """The query with other lists of survivors and dropouts; any but that of the last stage as it is."""
        if stage != STAGE:
            return dict(request)
        target = min(targets)
        survivors, dropped = [int(one) for one in request["survivors"]], [int(one) for one in request["dropped"]]
        holders, total = sorted({*survivors, *dropped}), int(request["total"])
        without = [one for one in survivors if one != target]
        gone = sorted({*dropped, target})
        told = {
            "both_shares": (sorted({*survivors, target}), gone, total),
            "fake_dropout": (without, gone, total - 1),
            "split_view": (without, gone, total - 1)
            if client in holders and holders.index(client) % 2 and client != target
            else (survivors, dropped, total),
            "isolate": ([target], [one for one in holders if one != target], 1),
        }[self.trick]
        if target not in holders:  # the client holds no share of the target's
            return dict(request)
        return {**request, "survivors": told[0], "dropped": told[1], "total": told[2]}

    def derive(self, seen: Sequence[Observation]) -> Derived:
        """Nothing: what is asked for is not given."""
        from fedsim.adversaries.base import Derived

        return Derived(
            (), (f"'{self.trick}' gives no single update; the round's line in rounds.jsonl says who refused what",)
        )
