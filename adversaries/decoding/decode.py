"""Decoding: from encodings and what is known of their mixtures to the private images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsim import progress
from fedsim.adversaries.base import Reconstruction
from fedsim.adversaries.decoding import coefficients, magnitudes, regression, signs, unmixing
from fedsim.adversaries.decoding.encodings import Encodings, as_published
from fedsim.errors import InputError

if TYPE_CHECKING:
    from fedsim.adversaries.decoding.carlini import Carlini


@dataclass(frozen=True)
class Mixtures:
    """What was mixed, known or found out. indices: (R, k). coefficients: (R, k). ids: (P,), all that occur, ascending.

    classes: int64 (P,), of the private images, where soft labels tell.
    """

    indices: Tensor
    coefficients: Tensor
    ids: Tensor
    classes: Tensor | None


def decode(settings: Carlini, encodings: Encodings, device: torch.device, rng: torch.Generator) -> Reconstruction:
    """The private images of all encodings, in ascending order of their ids where these are granted."""
    encodings = as_published(encodings) if settings.solver == "published" else encodings
    values = encodings.values.flatten(1).to(device)
    found = _mixtures(settings, encodings, values, rng)
    matrix = regression.mixing_matrix(found.indices, found.coefficients, found.ids)
    images, history = _images(settings, encodings, values, matrix)
    residual = float(regression.residual(values, matrix, images, encodings.hidden_signs).mean())
    raw = images.cpu().unflatten(1, encodings.shape)
    if encodings.hidden_signs and settings.solver == "least_squares":
        raw = signs.smooth(raw, encodings.normalise)
    inferred = settings.indices == "inferred"
    return Reconstruction(
        images=encodings.normalise.inverse(raw).clamp(0, 1).contiguous(),
        labels=None if found.classes is None else found.classes.cpu(),
        objective=residual,
        iterations=encodings.iterations,
        history=history or ((0, residual),),
        raw=raw.contiguous(),
        ids=None if inferred else found.ids.cpu(),
        notes=_notes(settings, encodings, found, residual, values),
    )


def _mixtures(settings: Carlini, encodings: Encodings, values: Tensor, rng: torch.Generator) -> Mixtures:
    start: Tensor | None = None
    if settings.indices == "inferred":
        indices, start = _inferred(settings, encodings, rng)
    else:
        indices = _granted(encodings.indices, "mixing_indices")
    indices = indices.to(values.device)
    ids = indices[indices >= 0].unique()
    if not len(ids):
        raise InputError("decoding: no private image was mixed into any encoding")
    mixed = None if encodings.labels is None else encodings.labels.to(values.device)
    labels = None
    if settings.coefficients == "known":
        found = _granted(encodings.coefficients, "mixing_coefficients").to(values.device)
    else:
        if settings.coefficients == "labels":
            mixed = _granted(mixed, "labels (soft ones, as encoding clients train with)")
            assert mixed is not None
            matrix = regression.mixing_matrix(indices, coefficients.even(indices), ids)
            labels = coefficients.Labels(mixed, coefficients.classes(mixed, matrix))
        found = coefficients.estimate(
            values,
            indices,
            ids,
            hidden_signs=encodings.hidden_signs,
            shape=encodings.shape,
            turns=settings.alternations,
            labels=labels,
            start=None if start is None else start.to(values.device),
            report=lambda done: progress.report(done, settings.alternations, "coefficients"),
        )
    matrix = regression.mixing_matrix(indices, found, ids)
    return Mixtures(indices, found, ids, None if mixed is None else coefficients.classes(mixed, matrix))


def _inferred(settings: Carlini, encodings: Encodings, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    count = settings.private_images
    assert count is not None  # else `objection` refuses
    if encodings.hidden_signs:
        raise InputError(
            'indices = "inferred" needs linear mixtures, but instahide hides their signs; grant mixing_indices'
        )
    rows, pixels = len(encodings.values), encodings.values[0].numel()
    if count >= min(rows, pixels) or encodings.mixed > count:
        raise InputError(
            f"private_images = {count}: it must be below the number of encodings, {rows}, and of pixel values, "
            f"{pixels}, and at least the {encodings.mixed} of a mixture; attack more rounds, or correct it"
        )
    return unmixing.unmix(encodings.values.flatten(1), count, encodings.mixed, rng)


def _images(
    settings: Carlini, encodings: Encodings, values: Tensor, matrix: Tensor
) -> tuple[Tensor, regression.History]:
    if settings.solver != "least_squares":
        return regression.descend(
            values,
            matrix,
            hidden_signs=encodings.hidden_signs,
            prior=settings.decoding_prior,
            steps=settings.decoding_steps,
            step_size=settings.decoding_step_size,
            report=lambda done: progress.report(done, settings.decoding_steps, "decoding"),
        )
    if encodings.hidden_signs:
        return magnitudes.retrieve(values, matrix, encodings.shape), ()
    return regression.least_squares(values, matrix), ()


def _granted(rows: Tensor | None, name: str) -> Tensor:
    if rows is None:
        raise InputError(f"decoding: {name} is not granted for every round; add it to knows")
    return rows


def _notes(
    settings: Carlini, encodings: Encodings, found: Mixtures, residual: float, values: Tensor
) -> dict[str, object]:
    notes: dict[str, object] = {
        "encodings": len(values),
        "decoder": settings.solver,
        "private images": len(found.ids),
        "unexplained": round(residual / max(float(values.square().mean()), 1e-12), 6),
    }
    if bool((found.indices < 0).any()):
        notes["public images"] = "they have no index, and what they contribute is left in as noise"
    if encodings.hidden_signs and settings.solver != "least_squares":
        notes["signs"] = "each pixel is known up to a sign; the published decoder leaves it as it falls"
    if settings.solver == "published":
        notes["indexing"] = "with the published fault: a pass's last, shorter batch is decoded by other rows' mixtures"
    return notes
