"""The ideal functionality of secure aggregation, and the settings that every mode with integer sums has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from fedsim.secagg.limits import problems
from fedsim.settings import Count, Positive

if TYPE_CHECKING:
    from fedsim.secagg.base import Terms
    from fedsim.secagg.quantization import Codec

Metric = Literal["train_loss", "epsilon"]


@dataclass(frozen=True)
class Ideal:
    """The ideal functionality: a trusted party adds up the clients' integers, and the server is told the sum alone.

    No cryptography, so that sweeps over many rounds are fast; the sums are those of `secagg+`, bit by bit.

    bits: of the ring, 32 or 64. clip: the largest magnitude of a coordinate of an update; larger ones are cut off, and
    counted. statistics_clip: the same for BatchNorm statistics, where the policy sends them. most_examples: the most
    that a client weighs, a public bound; if absent batch size times local steps or, for epochs, the next power of two
    above the largest client. min_survivors: with fewer clients left the round is closed; never one. metrics: numbers
    that leave a client in the clear.
    """

    bits: Literal[32, 64] = 32
    clip: Positive = 4.0
    statistics_clip: Positive = 64.0
    most_examples: Count | None = None
    min_survivors: Annotated[int, Field(ge=2)] = 3
    metrics: tuple[Metric, ...] = ()

    before: ClassVar[tuple[str, ...]] = ()
    after: ClassVar[tuple[str, ...]] = ()

    def problems(self, clients: int, most_examples: int | None, most_steps: int | None) -> Iterable[tuple[str, str]]:
        """(key, what is wrong with it and what to do) for rounds of so many clients; None: not known yet."""
        return summing_problems(self, clients, most_examples, most_steps)

    def codec(self, terms: Terms) -> Codec:
        """How contributions become integers."""
        from fedsim.secagg.quantization import Codec

        return Codec(terms, self.bits, self.clip, self.statistics_clip)

    def bound_of_one(self, terms: Terms) -> float:
        """By how much a coordinate of one client's update may be off that is taken out of a sum: as its integers."""
        return self.codec(terms).error

    def facts(self, terms: Terms) -> Mapping[str, Any]:
        """What was derived from the settings, for the manifest."""
        return summing_facts(self.codec(terms), self.min_survivors)


def summing_problems(
    settings: Any, clients: int, most_examples: int | None, most_steps: int | None
) -> Iterable[tuple[str, str]]:
    """The problems that any mode with integer sums can have."""
    yield from shared_problems(settings, clients)
    yield from problems(clients, most_examples, most_steps, settings)


def shared_problems(settings: Any, clients: int) -> Iterable[tuple[str, str]]:
    """The problems that any mode can have."""
    if clients < settings.min_survivors:
        yield (
            "min_survivors",
            f"{settings.min_survivors} clients must be left at the end of a round, but only {clients} take part; "
            "let more take part, or lower min_survivors (2 at least: the sum of one is its update)",
        )
    if len(set(settings.metrics)) != len(settings.metrics):
        yield "metrics", "has the same item twice"


def summing_facts(codec: Codec, min_survivors: int) -> dict[str, Any]:
    """For the manifest: how real vectors become integers, and by how much a mean can be off."""
    return {
        "bits": codec.bits,
        "clip": codec.clip,
        "statistics_clip": codec.statistics_clip,
        "scale": codec.scale,
        "statistics_scale": codec.statistics_scale,
        "error_bound": codec.error,
        "most_examples": codec.terms.most_examples,
        "min_survivors": min_survivors,
        "entries": codec.size,
    }
