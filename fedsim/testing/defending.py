"""A defense in one scene: every method that it has, called as a client calls it. And the rules for what comes back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsim import seeding
from fedsim.tensorfile import pack, unpack
from fedsim.testing.calls import Call, twice
from fedsim.testing.sites import Place

POOL = 6
"""Images of a client, unless its defense needs more."""


@dataclass(frozen=True, eq=False)
class Defended:
    """One defense in one scene. Its methods are called once, when a rule first looks at them."""

    plugin: Any
    place: Place

    @functools.cached_property
    def encoded(self) -> list[Call]:
        """`encode`, with whole labels and with mixed ones."""
        if not hasattr(self.plugin, "encode"):
            return []
        return [
            self._twice("encode", lambda mixed=mixed: {"batch": self.place.batch(mixed=mixed), "rng": self._rng()})  # type: ignore[misc]
            for mixed in (False, True)
        ]

    @functools.cached_property
    def mixed(self) -> list[Call]:
        """`mix`, for a client with plenty of images and for one that has just enough."""
        if not hasattr(self.plugin, "mix"):
            return []
        needed = max(self._needed(), self.place.scene.batch)
        return [
            self._twice(
                "mix",
                lambda size=size: {"batch": self.place.batch(), "pool": self.place.pool(size), "rng": self._rng()},  # type: ignore[misc]
            )
            for size in dict.fromkeys((max(POOL, needed), needed))
        ]

    @functools.cached_property
    def perturbed(self) -> list[Call]:
        """`perturb`, of a gradient and of one that is zero everywhere."""
        if not hasattr(self.plugin, "perturb"):
            return []
        return [
            self._twice("perturb", lambda scale=scale: {"update": self.place.update(scale), "rng": self._rng()})  # type: ignore[misc]
            for scale in (1.0, 0.0)
        ]

    @functools.cached_property
    def perturbed_at(self) -> list[Call]:
        """`perturb_at` in two rounds, the second with what was kept in the first; and of zeros, in a first round."""
        if not hasattr(self.plugin, "perturb_at"):
            return []
        first = self._at(1, {})
        calls = [first, self._at(1, {}, scale=0.0)]
        kept = memory_of(first)
        return [*calls, self._at(2, kept)] if isinstance(kept, Mapping) else calls

    @functools.cached_property
    def blind(self) -> list[Call]:
        """`perturb_at` behind a defense that makes the gradients, where it is shown no batches."""
        if not hasattr(self.plugin, "perturb_at") or getattr(self.plugin, "reads_batches", False):
            return []
        return [self._at(1, {}, batches=False)]

    @functools.cached_property
    def gradients(self) -> list[Call]:
        """`gradient` on a batch, on one image, and on none, which happens where each is drawn by chance."""
        if not hasattr(self.plugin, "gradient"):
            return []

        def given(count: int) -> dict[str, Any]:
            model = self.place.model()
            return {
                "model": model,
                "batch": self.place.batch(count),
                "plan": self.place.plan(),
                "loss": self.place.loss(model),
                "rng": self._rng(),
            }

        return [self._twice("gradient", functools.partial(given, count)) for count in (self.place.scene.batch, 1, 0)]

    @functools.cached_property
    def spending(self) -> list[tuple[Call, Call]]:
        """`spend` and `spent` after each of three rounds."""
        if not all(hasattr(self.plugin, one) for one in ("gradient", "spend", "spent")):
            return []
        out: list[tuple[Call, Call]] = []
        memory: dict[str, Tensor] = {}
        for _ in range(3):
            spend = self._twice("spend", lambda: {"memory": dict(memory), "plan": self.place.plan()})  # noqa: B023
            stored = through_bytes(spend.value) if spend.ended else "it failed"
            if isinstance(stored, str):
                return [*out, (spend, spend)]
            memory = stored
            out.append((spend, self._twice("spent", lambda: {"memory": dict(memory)})))  # noqa: B023
        return out

    @property
    def calls(self) -> list[Call]:
        """All of them, but for those without batches."""
        spent = [call for pair in self.spending for call in dict.fromkeys(pair)]
        return [*self.encoded, *self.mixed, *self.perturbed, *self.perturbed_at, *self.gradients, *spent]

    def _at(self, round_: int, memory: Mapping[str, Tensor], *, scale: float = 1.0, batches: bool = True) -> Call:
        def given() -> dict[str, Any]:
            site = self.place.site(round_, memory, batches=batches)
            return {"update": self.place.update(scale), "site": site, "rng": self._rng()}

        return self._twice("perturb_at", given)

    def _twice(self, method: str, given: Callable[[], Mapping[str, Any]]) -> Call:
        return twice(f"{type(self.plugin).__name__}.{method}", getattr(self.plugin, method), given)

    def _needed(self) -> int:
        try:
            return int(self.plugin.images_needed())
        except Exception:  # not there, or a rule says what is wrong with it
            return 0

    def _rng(self) -> torch.Generator:
        return seeding.generator(0, "defense")


def memory_of(call: Call) -> dict[str, Tensor] | str:
    """What `perturb_at` wants kept, as it is there in the next round; or why it cannot be kept."""
    if not call.ended or not isinstance(call.value, tuple) or len(call.value) != 2:
        return "nothing was returned"
    return through_bytes(call.value[1])


def through_bytes(memory: Any) -> dict[str, Tensor] | str:
    """Named tensors, written and read again; or why they cannot be."""
    if not isinstance(memory, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in memory.items()
    ):
        return "it is no mapping from names to tensors"
    return unpack(pack(memory, {}))[0]
