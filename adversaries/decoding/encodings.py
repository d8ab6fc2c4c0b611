"""The encodings of a client over the rounds, from what the inversions found and the threat model grants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedsim.adversaries.base import Job, Observation, Reconstruction
from fedsim.data.dataset import Normalisation
from fedsim.errors import InputError

HIDES_SIGNS = {"mixup": False, "instahide": True}
"""The defenses whose encodings can be decoded, and whether they give every pixel a random sign."""


@dataclass(frozen=True)
class Encodings:
    """R encodings in the order of the rounds.

    values: normalised, float32 (R, C, H, W). hidden_signs: whether their signs mean nothing. mixed: k.
    indices: int64 (R, k), -1 for a public image. coefficients: float32 (R, k). labels: float32 (R, classes), soft.
    Each of the three is None where it is not granted (for labels: not soft). rounds, lengths: of the batches.
    batch_size: that of a whole one; None where it is not shown. iterations: of an inversion, at most.
    """

    values: Tensor
    hidden_signs: bool
    mixed: int
    indices: Tensor | None
    coefficients: Tensor | None
    labels: Tensor | None
    normalise: Normalisation
    rounds: tuple[int, ...]
    lengths: tuple[int, ...]
    batch_size: int | None
    iterations: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image, (C, H, W)."""
        return tuple(self.values.shape[1:])


def gather(parts: Iterable[tuple[Job, Reconstruction]]) -> Encodings:
    """Put the parts together. Raises InputError where they are not encodings of one kind, one row for each mixture."""
    # Models and updates are dropped one by one: those of a thousand rounds together would fill the memory.
    kept = [(_granted_alone(job.observations[0]), found) for job, found in parts]
    if not kept:
        raise InputError("decoding: no inversion came to an end, so there is nothing to decode; see what failed")
    seen = [one for one, _ in kept]
    facts = seen[0].facts
    normalise = Normalisation(tuple(facts["mean"]), tuple(facts["std"]))
    encoding = _encoding(facts)
    values = [_raw(found, normalise) for _, found in kept]
    granted = [_granted(seen, key) for key in ("mixing_indices", "mixing_coefficients")]
    for name, rows in zip(("mixing_indices", "mixing_coefficients"), granted, strict=True):
        for one, value, row in zip(seen, values, rows or [], strict=False):
            if len(row) != len(value):
                raise InputError(
                    f"decoding round {one.round}: {len(value)} images were found, but known/{name} is of {len(row)} "
                    "encodings; clients that go through their images once a round fit"
                )
    labels = _granted(seen, "labels")
    indices, coefficients = (None if rows is None else torch.cat(rows) for rows in granted)
    return Encodings(
        values=torch.cat(values),
        hidden_signs=HIDES_SIGNS[encoding["name"]],
        mixed=int(encoding["k"]),
        indices=indices,
        coefficients=coefficients,
        labels=torch.cat(labels) if labels is not None and all(one.is_floating_point() for one in labels) else None,
        normalise=normalise,
        rounds=tuple(one.round for one in seen),
        lengths=tuple(len(value) for value in values),
        batch_size=facts.get("batch_size"),
        iterations=max(found.iterations for _, found in kept),
    )


def as_published(encodings: Encodings) -> Encodings:
    """The encodings with the mixtures that the published evaluation takes for theirs (see `published_rows`)."""
    if encodings.indices is None or encodings.coefficients is None:
        return encodings
    _check_consecutive(encodings.rounds)
    assert encodings.batch_size is not None  # whoever asks for this declares that it needs training details
    order = published_rows(encodings.lengths, encodings.batch_size)
    return replace(encodings, indices=encodings.indices[order], coefficients=encodings.coefficients[order])


def _granted_alone(seen: Observation) -> Observation:
    """The observation with nothing but what is granted besides its vantage's sights."""
    return replace(seen, tensors={name: value for name, value in seen.tensors.items() if name.startswith("known/")})


def published_rows(lengths: Sequence[int], batch_size: int) -> Tensor:
    """Which row's mixture the published evaluation takes for each encoding, int64 (R,).

    It lets batch b of a pass, of n images, begin at row b * n of the pass. That is right but for a last batch that is
    shorter than the others, which ends the pass. lengths: of the batches, in order.
    """
    order: list[int] = []
    first = batch = 0
    for length in lengths:
        order += range(first + batch * length, first + (batch + 1) * length)
        batch += 1
        if length < batch_size:
            first, batch = len(order), 0
    return torch.tensor(order)


def _check_consecutive(rounds: Sequence[int]) -> None:
    if list(rounds) != list(range(rounds[0], rounds[0] + len(rounds))):
        raise InputError(
            f'solver = "published" counts the batches of a pass, but of rounds {rounds[0]} to {rounds[-1]} only '
            f"{len(rounds)} are there; attack all of them, from the first of a pass on"
        )


def _encoding(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    names = [defense["name"] for defense in facts["defenses"]]
    found: list[Mapping[str, Any]] = [defense for defense in facts["defenses"] if defense["name"] in HIDES_SIGNS]
    if len(found) != 1:
        has = f"has {', '.join(names)}" if names else "has no defense"
        raise InputError(
            f"decoding: it undoes {' or '.join(HIDES_SIGNS)}, but the client {has}; without one of the two, "
            "an inversion such as huang is all there is to do"
        )
    return found[0]


def _raw(found: Reconstruction, normalise: Normalisation) -> Tensor:
    if found.raw is not None:
        return found.raw.float().cpu()
    if found.images is None:
        raise InputError("decoding: an inversion returned no images")
    return normalise(found.images.float().cpu())


def _granted(seen: Sequence[Observation], key: str) -> list[Tensor] | None:
    rows = [one.tensors[f"known/{key}"].cpu() for one in seen if f"known/{key}" in one.tensors]
    return rows if len(rows) == len(seen) else None
