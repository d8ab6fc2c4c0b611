"""A derivation that conforms, and for each rule one that breaks it and no other. No test is in here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fedsim.adversaries.base import Derived, Observation

NEEDS = frozenset({"global_model", "update", "num_examples"})


@dataclass(frozen=True)
class Fine:
    """Takes the mean of a sum for the first client's update. Source: none."""

    needs: ClassVar[Any] = NEEDS
    powers: ClassVar[Any] = frozenset()
    gives: ClassVar[Any] = frozenset({"update"})

    def derive(self, seen: Sequence[Observation]) -> Any:
        found = [self.one(one) for one in seen if one.sees("update")]
        return Derived(tuple(found), ("as if the sum were one client's",))

    def one(self, seen: Observation) -> Any:
        facts = {key: value for key, value in seen.facts.items() if key != "clients"}
        tensors = {path: value for path, value in seen.tensors.items() if not path.startswith("sum/")}
        return replace(seen, tensors=tensors, facts=facts)


@dataclass(frozen=True)
class Partial:
    """Derives nothing at all. Source: none."""

    needs: ClassVar[Any] = NEEDS
    powers: ClassVar[Any] = frozenset()
    gives: ClassVar[Any] = frozenset()


@dataclass(frozen=True)
class Generous(Fine):
    """Gives what no threat model has. Source: none."""

    gives: ClassVar[Any] = frozenset({"truth"})


@dataclass(frozen=True)
class Unarmed(Fine):
    """Has a power and no method for it. Source: none."""

    powers: ClassVar[Any] = frozenset({"alter_requests"})


@dataclass(frozen=True)
class Asking(Fine):
    """Changes the query in place. Source: none."""

    powers: ClassVar[Any] = frozenset({"alter_requests"})

    def alter_request(self, round_: int, client: int, targets: Any, stage: str, request: Any) -> Any:
        request["dropped"] = list(targets)
        return request


@dataclass(frozen=True)
class Curt(Fine):
    """Objects without words. Source: none."""

    def objection(self, situation: Any) -> Any:
        return situation.secure_aggregation == "ideal"


@dataclass(frozen=True)
class Nosy(Fine):
    """Reads what colluders tell without declaring them. Source: none."""

    def one(self, seen: Observation) -> Any:
        told = seen.facts["colluders"] if "clients" in seen.facts else {}
        return super().one(replace(seen, client=len(told)))


@dataclass(frozen=True)
class Failing(Fine):
    """Fails on what is no sum. Source: none."""

    def one(self, seen: Observation) -> Any:
        assert "clients" in seen.facts, "no sum"
        return super().one(seen)


@dataclass(frozen=True)
class Bare(Fine):
    """Returns observations alone. Source: none."""

    def derive(self, seen: Sequence[Observation]) -> Any:
        return list(seen)


@dataclass(frozen=True)
class Silent(Fine):
    """Grants less than it gives. Source: none."""

    gives: ClassVar[Any] = frozenset({"update", "labels"})


@dataclass(frozen=True)
class Boasting(Fine):
    """Grants more than it shows. Source: none."""

    def one(self, seen: Observation) -> Any:
        found = super().one(seen)
        return replace(found, facts={**found.facts, "granted": [*found.facts["granted"], "labels"]})


@dataclass(frozen=True)
class Slim(Fine):
    """Leaves a tensor out. Source: none."""

    def one(self, seen: Observation) -> Any:
        found = super().one(seen)
        left = next(path for path in found.tensors if path.startswith("update/"))
        return replace(found, tensors={path: value for path, value in found.tensors.items() if path != left})


@dataclass(frozen=True)
class Summing(Fine):
    """Derives sums. Source: none."""

    def one(self, seen: Observation) -> Any:
        found = super().one(seen)
        return replace(found, facts={**found.facts, "clients": [0, 1]})


@dataclass(frozen=True)
class Curtailing(Fine):
    """Leaves the model's name out. Source: none."""

    def one(self, seen: Observation) -> Any:
        found = super().one(seen)
        return replace(found, facts={key: value for key, value in found.facts.items() if key != "model"})


@dataclass(frozen=True)
class Unstorable(Fine):
    """Has facts that are no JSON data. Source: none."""

    def one(self, seen: Observation) -> Any:
        found = super().one(seen)
        return replace(found, facts={**found.facts, "derived": {1, 2}})


@dataclass(frozen=True)
class Idle(Fine):
    """Finds nothing, though it gives something. Source: none."""

    def derive(self, seen: Sequence[Observation]) -> Any:
        return Derived((), ("nothing was there",))


@dataclass(frozen=True)
class Vandal(Fine):
    """Works in place. Source: none."""

    def one(self, seen: Observation) -> Any:
        for value in seen.part("update").values():
            value.mul_(2)
        return super().one(seen)


@dataclass(frozen=True)
class Sharing(Fine):
    """Draws from torch's own generator. Source: none."""

    def derive(self, seen: Sequence[Observation]) -> Any:
        import torch

        torch.rand(1)
        return super().derive(seen)


@dataclass(frozen=True)
class Moody(Fine):
    """Says something else each time. Source: none."""

    def derive(self, seen: Sequence[Observation]) -> Any:
        return replace(super().derive(seen), notes=(os.urandom(8).hex(),))
