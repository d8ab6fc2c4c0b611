"""The derivation `differencing`: sums of rounds with different clients, subtracted from one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedsim.adversaries.derivations.participation import Participation, coefficients, together
from fedsim.adversaries.derivations.sums import (
    GIVES,
    equal_counts,
    named,
    no_sum,
    own_labels,
    quantised,
    single,
    sums_in,
    total,
)

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.adversaries.base import Derived, Observation, Situation


@dataclass(frozen=True)
class Differencing:
    """Solves the sums of several rounds, in which not all the same clients took part, for single clients.

    Source: So et al., "Securing Secure Aggregation: Mitigating Multi-Round Privacy Leakage in Federated Learning" (AAAI
    2023), which also shows that random selection gives every client away in about as many rounds as there are clients.

    Client i is determined when its unit vector is a combination c of the rows of the participation matrix (rounds by
    clients, 0 and 1), which is decided in exact arithmetic. Then sum_r c_r (sum of round r) is w_i times its update,
    and sum_r c_r (examples of round r) its weight w_i. Of all such c, that of least norm is taken.

    It assumes that a client sends the same update whenever it takes part: a model that stays as it is (learning_rate 0
    of the server) and a batch of all its images. Where the broadcast model changed between the rounds that were used,
    the update is an approximation, and the notes say so. So it is, a little, where only the order of the images in the
    batch changes: the rounding of the others' updates counts by their weights over the client's own. A weight that
    comes out as no whole number disproves the assumption; nothing is returned then.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"global_model", "update", "num_examples"})
    powers: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = GIVES

    def objection(self, situation: Situation) -> str | None:
        """Only of sums there is anything to derive."""
        return no_sum(situation)

    def derive(self, seen: Sequence[Observation]) -> Derived:
        """An observation of each client that is determined, in the last round used in which it took part."""
        from fedsim.adversaries.base import Derived

        places = sums_in(seen)
        if not places:
            return Derived((), ("no sum of a round was shown",))
        facts = [(seen[place].round, seen[place].facts) for place in places]
        rounds = [frozenset(int(client) for client in one["clients"]) for _, one in facts]
        weights = [int(one["num_examples"]) for _, one in facts]
        known, since = Participation(), dict[int, int]()
        for (round_, _), clients in zip(facts, rounds, strict=True):
            known.add(clients)
            for client in known.determined():
                since.setdefault(client, round_)
        notes = [f"client {client} is determined by the sums up to round {since[client]}" for client in sorted(since)]
        notes += _undetermined(known, rounds, since)
        combined = coefficients(rounds, sorted(since))
        counts: dict[int, int] = {}
        for client, c in combined.items():
            weight = sum(factor * w for factor, w in zip(c, weights, strict=True))
            if abs(weight - round(weight)) < 1e-3 and round(weight) >= 1:
                counts[client] = round(weight)
            else:
                notes.append(
                    f"client {client}: its weight comes out as {weight:.3f}, so that it cannot have sent the same in "
                    "all of its rounds; left out"
                )
        found = []
        for client, count in counts.items():
            used = [(place, factor) for place, factor in zip(places, combined[client], strict=True) if factor]
            one, moved = self._one(seen, client, used, count, counts)
            found.append(one)
            if moved:
                notes.append(
                    f"client {client}: the broadcast model was not the same in all of the rounds "
                    f"{', '.join(map(str, one.facts['derived']['rounds']))}: its update is an approximation"
                )
        return Derived(tuple(found), tuple(notes))

    def _one(
        self,
        seen: Sequence[Observation],
        client: int,
        used: Sequence[tuple[int, float]],
        count: int,
        counts: Mapping[int, int],
    ) -> tuple[Observation, bool]:
        """The client's observation, and whether the model changed between the rounds that were used."""
        added: dict[str, Tensor] = {}
        model: dict[str, Tensor] | None = None
        last, moved, rounds = None, False, []
        for place, factor in used:
            one = seen[place]  # read from disk: one at a time
            rounds.append(one.round)
            how = quantised(one)
            for part in ("update", "sent_buffers"):
                for name, value in total(one, part, how).items():
                    term = value * (factor / (how.exact(part) or 1))
                    path = f"{part}/{name}"
                    added[path] = added[path] + term if path in added else term
            shown = one.part("model")
            model = model or shown
            moved = moved or any(not shown[name].equal(value) for name, value in model.items())
            if client in one.facts["clients"]:
                last = one
        assert last is not None
        size = equal_counts(last)
        each = dict.fromkeys(last.facts["clients"], size) if size is not None else {}
        labels = own_labels(last, client, {**each, **counts})
        tensors = {path: (value / count).float() for path, value in added.items()}
        if labels is not None:
            tensors["known/labels"] = labels
        how_ = {"by": "differencing", "rounds": rounds, "coefficients": [factor for _, factor in used]}
        return single(last, client, tensors, how_, num_examples=count), moved


def _undetermined(known: Participation, rounds: Sequence[frozenset[int]], determined: Mapping[int, int]) -> list[str]:
    """Why the sums do not determine the other clients, in words."""
    rest = [client for client in known.clients if client not in determined]
    groups = together(rounds, rest)
    said = {client for group in groups for client in group}
    notes = [f"not determined: {named(group)} always took part together" for group in groups]
    for client in rest:
        if client not in said:
            others = named(known.confounded(client))
            notes.append(f"not determined: client {client} cannot be told apart from {others} by who took part when")
    return notes
