"""The derivation `masked`: the masked vector of a link, taken for the update itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedsim.adversaries.derivations.sums import GIVES, single

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.adversaries.base import Derived, Observation, Situation

OWN = ("known/",)
"""A link shows one client alone: whatever is granted is that client's."""


@dataclass(frozen=True)
class Masked:
    """Decodes a client's masked vector as if there were no mask: vector / (scale * examples).

    What an eavesdropper can try on the link of a client under secure aggregation, to show that it learns nothing: the
    mask is uniform on the ring, and so is the vector. Scale and layout are public; for the examples, the batch size is
    taken (fedsgd), or the most that a client weighs.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"global_model", "masked_update"})
    powers: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = GIVES

    def objection(self, situation: Situation) -> str | None:
        """Ciphertexts have no elements of a ring; and where a link shows one update, nothing tells how many images it
        was made from, but in fedsgd.
        """
        if situation.secure_aggregation == "ckks":
            return "with secure_aggregation = 'ckks' a link shows ciphertexts and no masked vector; use 'secagg+'"
        if not situation.one_gradient:
            return "it takes the batch size for the number of images, which does not fit local steps; use fedsgd"
        return None

    def derive(self, seen: Sequence[Observation]) -> Derived:
        """An observation for each masked vector."""
        from fedsim.adversaries.base import Derived

        found = [decoded(one) for one in seen if "masked/vector" in one.tensors]
        if found:
            return Derived(tuple(found), ("masked vectors are taken for updates: they are uniform on the ring",))
        return Derived((), ("no masked vector of ring elements was shown",))


def decoded(seen: Observation) -> Observation:
    """What the vector would say if it were not masked."""
    facts = seen.facts["secure_aggregation"]
    most = int(facts["most_examples"])
    count = min(int(seen.facts.get("batch_size", most)), most) if seen.facts["algorithm"] == "fedsgd" else most
    vector, layout = seen.tensors["masked/vector"].double(), facts["layout"]
    tensors: dict[str, Tensor] = {}
    place = 0
    # The layout is in the order of the model's parameters, which the facts, being JSON, do not keep.
    for part, names, scale in (
        ("update", list(seen.part("model")), facts["scale"]),
        ("statistics", sorted(layout["statistics"]), facts.get("statistics_scale", facts["scale"])),
    ):
        for name in names:
            shape = tuple(layout[part][name])
            value = vector[place : place + math.prod(shape)] / (scale * count)
            tensors[f"{'update' if part == 'update' else 'sent_buffers'}/{name}"] = value.reshape(shape).float()
            place += math.prod(shape)
    derived = {"by": "masked", "rounds": [seen.round]}
    return single(
        seen,
        seen.client,
        tensors,
        derived,
        num_examples=count,
        num_steps=int(seen.facts.get("num_steps", 1)),
        own=OWN,
    )
