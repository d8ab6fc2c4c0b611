"""The derivation `collusion`: n - 1 clients that work together with the server leave the update of the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedsim.adversaries.derivations.sums import GIVES, named, no_sum, own_labels, quantised, single, sums_in, total

if TYPE_CHECKING:
    from fedsim.adversaries.base import Derived, Observation, Situation


@dataclass(frozen=True)
class Collusion:
    """Subtracts from the sum of a round what the colluding clients sent themselves.

    No protocol can prevent it: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning"
    (CCS 2017), hides an honest client among the other honest ones alone.

    The colluders make of their updates the integers rint(x * scale) * w that they sent, the server has the sum of all
    integers, mean * scale * examples. What remains is that of one client, exactly: divided by scale and weight, it is
    the client's update within 1 / (2 scale) a coordinate (and the rounding to float32), cut off at the clip. A round
    that leaves two or more clients besides the colluders gives nothing: any of their updates is possible.

    The client's local steps are worked out from the rounded mean of all; labels that are granted are cut out at the
    places that the colluders' counts tell.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"global_model", "update", "num_examples", "colluders"})
    powers: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = GIVES

    def objection(self, situation: Situation) -> str | None:
        """Only of sums there is anything to derive."""
        return no_sum(situation)

    def derive(self, seen: Sequence[Observation]) -> Derived:
        """The last client's update of each round in which only one is left."""
        from fedsim.adversaries.base import Derived

        found, notes = [], []
        for place in sums_in(seen):
            one = seen[place]
            there = {int(client) for client in one.facts["clients"]}
            told = {int(client) for client in one.facts.get("colluders", {})} & there
            left = there - told
            if len(left) == 1:
                found.append(self._last(one, left.pop(), sorted(told)))
                notes.append(f"round {one.round}: client {found[-1].client} is the only one besides the colluders")
            elif left:
                notes.append(
                    f"round {one.round}: {named(left)} are left besides the colluders: only their sum is known"
                )
            else:
                notes.append(f"round {one.round}: all of the sum's clients are colluders")
        return Derived(tuple(found), tuple(notes or ["no sum of a round was shown"]))

    def _last(self, seen: Observation, client: int, colluders: Sequence[int]) -> Observation:
        how = quantised(seen)
        said = {colluder: seen.facts["colluders"][str(colluder)] for colluder in colluders}
        weights = {one: int(min(facts["num_examples"], how.most_examples)) for one, facts in said.items()}
        everyone = int(seen.facts["num_examples"])
        weight = everyone - sum(weights.values())
        tensors = {}
        for part in ("update", "sent_buffers"):
            own = {colluder: seen.part(f"colluder/{colluder}/{part}") for colluder in colluders}
            for name, rest in total(seen, part, how).items():
                for colluder in colluders:
                    rest = rest - weights[colluder] * how.one(own[colluder][name], part)
                tensors[f"{part}/{name}"] = (rest / (weight * (how.exact(part) or 1))).float()
        counts = {one: int(facts["num_examples"]) for one, facts in said.items()} | {client: weight}
        labels = own_labels(seen, client, counts)
        if labels is not None:
            tensors["known/labels"] = labels
        steps = everyone * int(seen.facts["num_steps"]) - sum(weights[one] * said[one]["num_steps"] for one in said)
        return single(
            seen,
            client,
            tensors,
            {"by": "collusion", "rounds": [seen.round], "colluders": list(colluders)},
            num_examples=weight,
            num_steps=max(1, round(steps / weight)),
        )
