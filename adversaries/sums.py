"""The sum of several clients' updates as one observation: of updates that were seen one by one, or of a total that is
all that a secure aggregation shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fedsim.adversaries.base import Observation
from fedsim.secagg.base import Total


def summed(parts: Sequence[Observation]) -> Observation:
    """What is left of several clients' observations in a round where only the sum is shown; see `Observation`.

    Labels that are granted stand one client after the other; granted statistics are means, as the update is. Sizes are
    added up. `num_steps` is the mean, weighted as the update and rounded; of the other facts, what is not the same for
    all clients is left out.
    """
    parts = sorted(parts, key=lambda seen: seen.client)
    counts = [float(seen.facts.get("num_examples", 1)) for seen in parts]
    tensors = _merged([seen.tensors for seen in parts], counts)
    facts = _facts(parts)
    if "num_examples" in parts[0].facts:
        facts["num_examples"] = sum(seen.facts["num_examples"] for seen in parts)
    if "num_steps" in parts[0].facts:
        steps = torch.tensor([float(seen.facts["num_steps"]) for seen in parts], dtype=torch.float64)
        facts["num_steps"] = max(1, round(float((_shares(counts) * steps).sum())))
    return _made(parts, tensors, facts)


def of_total(parts: Sequence[Observation], counts: Sequence[int], total: Total, *, exact: bool) -> Observation:
    """A secure aggregation's total as an observation.

    parts: of each client in it, what is known besides, without its update. counts: their examples, by which statistics
    that are granted are averaged. exact: whether to add the means as they are, float64, below `sum/update` and
    `sum/sent_buffers`, for derivations that count in integers.
    """
    parts, counts = zip(*sorted(zip(parts, counts, strict=True), key=lambda pair: pair[0].client), strict=True)
    tensors = _merged([seen.tensors for seen in parts], counts)
    for part, values in (("update", total.update), ("sent_buffers", total.statistics)):
        tensors.update({f"{part}/{name}": value.to(torch.float32) for name, value in values.items()})
        if exact:
            tensors.update({f"sum/{part}/{name}": value for name, value in values.items()})
    facts = _facts(parts) | {"num_examples": total.examples, "num_steps": max(1, round(total.steps))}
    return _made(parts, tensors, facts)


def _made(parts: Sequence[Observation], tensors: dict[str, Tensor], facts: dict[str, Any]) -> Observation:
    first = parts[0]
    facts["clients"] = [seen.client for seen in parts]
    return Observation(first.round, first.client, first.vantage, MappingProxyType(tensors), MappingProxyType(facts))


def _merged(parts: Sequence[Mapping[str, Tensor]], counts: Sequence[float]) -> dict[str, Tensor]:
    """Labels one after the other, the global model once, everything else as the mean weighted by examples."""
    tensors, shares = dict(parts[0]), _shares(counts)
    for name in tensors:
        values = [part[name] for part in parts]
        if name == "known/labels":
            tensors[name] = torch.cat(values)
        elif not name.startswith(("model/", "buffers/")):
            mean = sum(share * value.double() for share, value in zip(shares, values, strict=True))
            tensors[name] = torch.as_tensor(mean).to(values[0].dtype)
    return tensors


def _facts(parts: Sequence[Observation]) -> dict[str, Any]:
    first = parts[0]
    facts = {key: value for key, value in first.facts.items() if all(seen.facts.get(key) == value for seen in parts)}
    for key in ("bytes_down", "bytes_up"):
        if key in first.facts:
            facts[key] = sum(seen.facts[key] for seen in parts)
    return facts


def _shares(counts: Sequence[float]) -> Tensor:
    values = torch.tensor([float(count) for count in counts], dtype=torch.float64)
    return values / values.sum()
