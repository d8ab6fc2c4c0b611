"""What a rule of awareness gets, and what it may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from fedsim.adversaries.inversion.maps import Map, scaled

SCALE_FREE = ("cosine", "angular")
"""Objectives that the length of a gradient makes no difference to."""

KEEPERS = frozenset({"gradient_pruning", "random_sparsification", "soteria", "mixup", "instahide"})
"""Defenses behind which what is left of an entry is what it was, up to one factor known for all."""


@dataclass(frozen=True)
class Matched:
    """What the attack matches.

    target: the gradient seen, tensor by tensor. masks: how much its entries count; None: all count alike.
    maps, given: what becomes of the guess's gradient before the two are compared, in this order, and what each map is
    told. objective: the objective's name. tv_absolute: whether total variation is of |image|. symmetric: whether the
    box of valid pixels holds x and -x alike. said: what was made of each defense, for the notes.
    """

    target: Sequence[Tensor]
    masks: Sequence[Tensor] | None = None
    maps: tuple[Map, ...] = ()
    given: tuple[Sequence[Tensor], ...] = ()
    objective: str = "cosine"
    tv_absolute: bool = False
    symmetric: bool = False
    said: tuple[str, ...] = ()
    told: int = 0
    """How many of the factors in `masks` the maps already know of."""
    hidden: tuple[Sequence[Tensor], ...] = field(default=(), repr=False)
    """Masks of entries that were not sent, in the order of the defenses."""

    def counting(self, shares: Sequence[Tensor]) -> Matched:
        """Entries count by these factors besides: of the shape of each tensor, or scalars."""
        if self.masks is None:
            return replace(self, masks=list(shares))
        return replace(self, masks=[mask * share for mask, share in zip(self.masks, shares, strict=True)])

    def hiding(self, masks: Sequence[Tensor]) -> Matched:
        """Entries where a mask is 0 were not sent: they do not count, and a defense further on did not have them."""
        return replace(self.counting(masks), hidden=(*self.hidden, masks))

    def mapping(self, one: Map, given: Sequence[Tensor]) -> Matched:
        """The guess's gradient goes through one map more, without what was hidden before."""
        waiting = self.hidden[self.told :]
        return replace(
            self,
            maps=(*self.maps, *(scaled for _ in waiting), one),
            given=(*self.given, *waiting, list(given)),
            told=len(self.hidden),
        )

    def saying(self, text: str) -> Matched:
        """For the notes."""
        return replace(self, said=(*self.said, text))


@dataclass(frozen=True)
class Place:
    """What a rule knows besides the settings of its defense.

    unit: what 1 of `Matched.target` was in the update that was sent: 1 with fedsgd, the rate times the number of steps
        with fedavg. steps, images: of the update. round: counted from 1.
    names: of the tensors. parameters: the broadcast ones, in that order. last: the name of the last fully connected
        layer. later: the names of the defenses that came after this one. clients: how many clients' updates the
        target is the mean of; each of them went through the defenses by itself.
    """

    unit: float
    steps: int
    images: int
    round: int
    names: Sequence[str]
    parameters: Sequence[Tensor]
    last: str | None
    later: Sequence[str] = ()
    clients: int = 1

    @property
    def final(self) -> bool:
        """Whether what is left of each entry was sent as it left this defense (but for a factor, or not at all)."""
        return all(name in KEEPERS for name in self.later)


class Rule(Protocol):
    """What knowing one defense changes."""

    def __call__(self, matched: Matched, settings: Mapping[str, Any], place: Place) -> Matched:
        """settings: name and settings of the defense. What the rule made of them goes to `Matched.said`."""
        ...


def left_over(settings: Mapping[str, Any], place: Place) -> str:
    """What to add to the notes where error feedback may have brought in something of earlier rounds."""
    if settings.get("error_feedback") and place.round > 1:
        return "; what error feedback brought over from earlier rounds is unknown to it, and taken for nothing"
    return ""
