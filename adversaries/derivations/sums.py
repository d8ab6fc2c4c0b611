"""What the derivations share: which observations are of sums, and what is left of one for a single client."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.adversaries.base import Observation, Situation

GIVES = frozenset({"update", "num_examples"})
"""What a single client's update comes with, in the words of the threat model."""

OF_SUMS = frozenset({"sizes", "colluders", "masked_update", "encrypted_shares", "opened_shares"})
"""What is granted of a round, but is nothing that a derived observation shows."""

FACTS_OF_SUMS = frozenset({"clients", "colluders", "targets", "bytes_down", "bytes_up"})
"""Facts that are not of a single client, or that only its own message would tell."""

SHARED_STATISTICS = frozenset({"share_batch", "share_running", "freeze"})
"""The BatchNorm policies with which all clients start a round with the same running statistics."""


@dataclass(frozen=True)
class Quantised:
    """How what was summed became integers; public. Infinite scales: it did not, or not by a rule that is known.

    scale, clip: of a part, `update` or `sent_buffers`. most_examples: the most that a client weighs.
    """

    scale: Mapping[str, float]
    clip: Mapping[str, float]
    most_examples: float

    def whole(self, values: Tensor, part: str, weight: float = 1) -> Tensor:
        """weight * values in units of 1 / scale, rounded, float64: exact where they are integers below 2^53."""
        return values if self.exact(part) is None else (values * (self.scale[part] * weight)).round()

    def one(self, values: Tensor, part: str) -> Tensor:
        """A client's own values as it turned them into integers before it weighed them, float64."""
        limit = self.clip[part]
        return self.whole(values.double().clamp(-limit, limit), part)

    def exact(self, part: str) -> float | None:
        """The scale; None where there is none."""
        return self.scale[part] if math.isfinite(self.scale[part]) else None


def no_sum(situation: Situation) -> str | None:
    """Why a derivation from sums cannot work in a situation; None if it can."""
    return (
        None if situation.aggregate else "it works on sums, and here every update is shown by itself; leave derive out"
    )


def sums_in(seen: Sequence[Observation]) -> list[int]:
    """The places of the observations that are of sums. Each is looked at once."""
    return [place for place, one in enumerate(seen) if one.facts.get("clients") and one.sees("update")]


def quantised(seen: Observation) -> Quantised:
    """How the sum was made. A mode without a ring of integers, or none at all, has no scale."""
    facts = seen.facts.get("secure_aggregation") or {}
    if "bits" not in facts:
        facts = {}
    return Quantised(
        {"update": facts.get("scale", math.inf), "sent_buffers": facts.get("statistics_scale", math.inf)},
        {"update": facts.get("clip", math.inf), "sent_buffers": facts.get("statistics_clip", math.inf)},
        facts.get("most_examples") or math.inf,
    )


def total(seen: Observation, part: str, how: Quantised) -> dict[str, Tensor]:
    """The weighted sum of a part by name, float64: in units of 1 / scale where there is a scale.

    Of the means in float64 (`sum/PART`), where they are there; then it is exact.
    """
    weight = int(seen.facts["num_examples"])
    means = seen.part(f"sum/{part}") or seen.part(part)
    if how.exact(part) is None:
        return {name: mean.double() * weight for name, mean in means.items()}
    return {name: how.whole(mean.double(), part, weight) for name, mean in means.items()}


def equal_counts(seen: Observation) -> int | None:
    """How many examples each client of the sum had, where that follows from what everybody knows; None where not.

    In fedsgd no client has more than the batch size, so that all have as many where the sum has batch size times
    clients.
    """
    facts = seen.facts
    size = int(facts.get("batch_size") or 0)
    alike = facts["algorithm"] == "fedsgd" and size and size * len(facts["clients"]) == facts["num_examples"]
    return size if alike else None


def own_labels(seen: Observation, client: int, counts: Mapping[int, int]) -> Tensor | None:
    """The client's part of the labels that a sum was granted, which stand one client after the other.

    counts: of examples, as far as they are known. None where nothing tells where the client's own begin and end.
    """
    labels = seen.tensors.get("known/labels")
    clients = sorted(seen.facts["clients"])
    if labels is None or any(one not in counts for one in clients) or sum(counts[c] for c in clients) != len(labels):
        return None
    first = sum(counts[one] for one in clients if one < client)
    return labels[first : first + counts[client]]


def single(
    seen: Observation,
    client: int,
    tensors: Mapping[str, Tensor],
    derived: Mapping[str, Any],
    *,
    num_examples: int,
    num_steps: int | None = None,
    own: Iterable[str] = (),
) -> Observation:
    """The observation of one client that a derivation returns.

    seen: what it came from: the model, and what is known of the training, are taken from there. tensors: `update/...`,
    and what else was derived. own: prefixes of tensors of `seen` that are this client's as they are. derived: JSON data
    that says how, for the facts.
    """
    from types import MappingProxyType

    from fedsim.adversaries.base import Observation

    kept = ("model/", "buffers/", *own)
    if seen.facts.get("batchnorm") in SHARED_STATISTICS:  # the broadcast ones, which are the same for all
        kept = (*kept, "known/running_mean/", "known/running_var/")
    found = {name: value for name, value in seen.tensors.items() if name.startswith(kept)}
    found |= tensors
    facts = {key: value for key, value in seen.facts.items() if key not in FACTS_OF_SUMS}
    facts |= {"num_examples": int(num_examples), "derived": dict(derived)}
    if num_steps is not None:
        facts["num_steps"] = int(num_steps)
    facts["granted"] = sorted((set(facts["granted"]) | GIVES) - OF_SUMS - _lacking(found, seen.facts.get("batchnorm")))
    return Observation(seen.round, client, seen.vantage, MappingProxyType(found), MappingProxyType(facts))


def _lacking(tensors: Mapping[str, Any], policy: str | None) -> set[str]:
    """The knowledge, in the words of the threat model, that may have been granted of a sum but is not shown of one."""

    def any_of(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in tensors)

    shown = {
        "labels": any_of("known/labels"),
        "batch_statistics": any_of("known/mean/") or (policy == "share_batch" and any_of("sent_buffers/")),
        "running_statistics": any_of("known/running_mean/", "buffers/"),
        "mixing_indices": any_of("known/mixing_indices"),
        "mixing_coefficients": any_of("known/mixing_coefficients"),
    }
    return {item for item, there in shown.items() if not there}


def named(clients: Iterable[int]) -> str:
    """`client 3`, `clients 1 and 3`, `clients 0, 1 and 3`."""
    numbers = [str(client) for client in sorted(clients)]
    if len(numbers) == 1:
        return f"client {numbers[0]}"
    return f"clients {', '.join(numbers[:-1])} and {numbers[-1]}"
