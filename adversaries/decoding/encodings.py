"""The encodings of a client over the rounds, from what the inversions found and the threat model grants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    Each of the three is None where it is not granted (for labels: not soft).
    """

    values: Tensor
    hidden_signs: bool
    mixed: int
    indices: Tensor | None
    coefficients: Tensor | None
    labels: Tensor | None
    normalise: Normalisation

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image, (C, H, W)."""
        return tuple(self.values.shape[1:])


def gather(parts: Sequence[tuple[Job, Reconstruction]], published_indexing: bool) -> Encodings:
    """Put the parts together. Raises InputError where they are not encodings of one kind, one row for each mixture.

    published_indexing: give the rows the mixtures that `published_rows` says.
    """
    if not parts:
        raise InputError("decoding: no inversion came to an end, so there is nothing to decode; see what failed")
    seen = [job.observations[0] for job, _ in parts]
    facts = seen[0].facts
    normalise = Normalisation(tuple(facts["mean"]), tuple(facts["std"]))
    encoding = _encoding(facts)
    values = [_raw(found, normalise) for _, found in parts]
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
    if published_indexing and indices is not None and coefficients is not None:
        _check_consecutive(seen)
        order = published_rows([len(value) for value in values], int(facts["batch_size"]))
        indices, coefficients = indices[order], coefficients[order]
    return Encodings(
        values=torch.cat(values),
        hidden_signs=HIDES_SIGNS[encoding["name"]],
        mixed=int(encoding["k"]),
        indices=indices,
        coefficients=coefficients,
        labels=torch.cat(labels) if labels is not None and all(one.is_floating_point() for one in labels) else None,
        normalise=normalise,
    )


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


def _check_consecutive(seen: Sequence[Observation]) -> None:
    rounds = [one.round for one in seen]
    if rounds != list(range(rounds[0], rounds[0] + len(rounds))):
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
