"""What holds of every method of a defense: one rule each."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fedsim.clients.defenses.base import Mixed
from fedsim.protocol import Batch, Update
from fedsim.testing.calls import CALL_RULES, Call
from fedsim.testing.defending import Defended, through_bytes
from fedsim.testing.findings import Said
from fedsim.testing.situations import CLASSES

SLACK = 1e-4
"""By which a sum of weights may miss 1."""


def _of_calls(rule: Callable[[Sequence[Call]], Said]) -> Callable[[Defended], Said]:
    @functools.wraps(rule)
    def on_all(tried: Defended) -> Said:
        return rule(tried.calls)

    return on_all


def encoded_batches_can_be_trained_on(tried: Defended) -> Said:
    """An encoding keeps the number and the shape of the images (float32, finite), and labels that a loss can take."""
    for call in tried.encoded:
        if call.ended:
            for problem in _batch_problems(call.value, call.given["batch"]):
                yield call.place, problem
    for call in tried.mixed:
        if call.ended and isinstance(call.value, Mixed):
            for problem in _batch_problems(call.value.batch, call.given["batch"]):
                yield call.place, problem


def _batch_problems(found: Any, before: Batch) -> Iterator[str]:
    if not isinstance(found, Batch):
        yield f"returns {type(found).__name__}, not a Batch; return Batch(images, labels)"
        return
    if found.images.shape != before.images.shape or found.images.dtype != torch.float32:
        yield (
            f"its images are {found.images.dtype} {tuple(found.images.shape)}, not torch.float32 "
            f"{tuple(before.images.shape)}; keep number, shape and type"
        )
    elif not bool(torch.isfinite(found.images).all()):
        yield "its images hold NaN or Inf; keep them finite"
    labels, count = found.labels, len(before)
    if labels.dtype == torch.int64 and labels.shape == (count,):
        if bool((labels < 0).any() or (labels >= CLASSES).any()):
            yield f"its labels leave 0 to {CLASSES - 1}; keep to the classes of the data set"
    elif labels.dtype == torch.float32 and labels.shape == (count, CLASSES):
        if not bool(torch.isfinite(labels).all() and (labels >= 0).all() and (labels.sum(1) <= 1 + SLACK).all()):
            yield "its labels are no weights of classes; keep them from 0 on, each row summing to 1 at most"
    else:
        yield (
            f"its labels are {labels.dtype} {tuple(labels.shape)}; return int64 ({count},), or float32 "
            f"({count}, classes) where they are mixed"
        )


def mixtures_say_what_they_are_made_of(tried: Defended) -> Said:
    """`mix` returns Mixed: for each encoded image, which images it is made of and with which weights."""
    for call in tried.mixed:
        if not call.ended:
            continue
        found, pool = call.value, call.given["pool"]
        if not isinstance(found, Mixed):
            yield call.place, f"returns {type(found).__name__}, not Mixed; return Mixed(batch, indices, coefficients)"
            continue
        indices, weights, count = found.indices, found.coefficients, len(call.given["batch"])
        if indices.dtype != torch.int64 or indices.dim() != 2 or len(indices) != count:
            yield call.place, f"its indices are {indices.dtype} {tuple(indices.shape)}; return int64 ({count}, k)"
        elif bool((indices < -1).any() or (indices >= pool.size).any()):
            yield call.place, f"its indices leave -1 to {pool.size - 1}; -1 is a public image, others count the pool's"
        if weights.dtype != torch.float32 or weights.shape != indices.shape:
            yield call.place, f"its coefficients are {weights.dtype} {tuple(weights.shape)}; return float32, as indices"
        elif not bool(((weights.sum(1) - 1).abs() <= SLACK).all()):
            yield call.place, "its coefficients do not sum to 1 in each row; let them"


def updates_keep_names_and_shapes(tried: Defended) -> Said:
    """A perturbed update has the names, the order, the shapes and the types of the one before."""
    for call, update in _updates(tried):
        if not isinstance(update, Update):
            shape = "(Update, memory)" if call.place.endswith("_at") else "Update"
            yield call.place, f"does not return {shape}; use `update.map` or Update(tensors)"
            continue
        before = call.given["update"].tensors
        if list(update.tensors) != list(before):
            yield call.place, "its update has not the parameters of the one before, in their order; keep all of them"
            continue
        for name, value in update.tensors.items():
            like = before[name]
            if not isinstance(value, Tensor) or value.shape != like.shape or value.dtype != like.dtype:
                kind = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                yield call.place, f"makes `{name}` {kind} of {like.dtype} {tuple(like.shape)}; keep shape and type"


def finite_stays_finite(tried: Defended) -> Said:
    """Of finite numbers, zeros among them, come finite ones: a server refuses NaN and Inf."""
    for call, update in _updates(tried):
        if isinstance(update, Update):
            zero = not any(bool(value.any()) for value in call.given["update"].tensors.values())
            for name, value in update.tensors.items():
                if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
                    of = "an update of zeros" if zero else "a finite update"
                    yield call.place, f"makes NaN or Inf of {of}, in `{name}`; mind divisions and logarithms of 0"


def _updates(tried: Defended) -> Iterator[tuple[Call, Any]]:
    for call in tried.perturbed:
        if call.ended:
            yield call, call.value
    for call in tried.perturbed_at:
        if call.ended:
            pair = isinstance(call.value, tuple) and len(call.value) == 2
            yield call, call.value[0] if pair else None


def memory_can_be_kept(tried: Defended) -> Said:
    """What is remembered from round to round is named tensors: they are stored in between."""
    for call in tried.perturbed_at:
        if call.ended and isinstance(call.value, tuple) and len(call.value) == 2:
            memory = through_bytes(call.value[1])
            if isinstance(memory, str):
                yield (
                    call.place,
                    f"its memory cannot be kept: {memory}; return {{name: tensor}}",
                )
    for spend, _ in tried.spending:
        if spend.ended and isinstance(through_bytes(spend.value), str):
            yield spend.place, f"its memory cannot be kept: {through_bytes(spend.value)}; return {{name: tensor}}"


def works_without_batches(tried: Defended) -> Said:
    """Behind a defense that makes the gradients, `perturb_at` sees no batches, unless it says that it reads them."""
    for call in tried.blind:
        if call.error is not None:
            yield (
                call.place,
                f"raises {type(call.error).__name__}: {call.error} where `site.batches` is empty; do without them, or "
                "declare `reads_batches: ClassVar[bool] = True`",
            )


def gradients_fit_the_model(tried: Defended) -> Said:
    """`gradient` returns a finite tensor for each parameter, in the model's order, for batches of any size."""
    for call in tried.gradients:
        if not call.ended:
            continue
        weights = list(call.given["model"].parameters())
        found, count = call.value, len(call.given["batch"])
        if not isinstance(found, list) or len(found) != len(weights):
            yield call.place, f"does not return a list of {len(weights)} tensors, one a parameter; return all of them"
            continue
        for value, weight in zip(found, weights, strict=True):
            if not isinstance(value, Tensor) or value.shape != weight.shape or value.dtype != weight.dtype:
                yield call.place, "returns tensors that have not the parameters' shapes and types, in their order"
                break
            if not bool(torch.isfinite(value).all()):
                yield call.place, f"returns NaN or Inf for a batch of {count}; sum over the images, and divide by none"
                break


def spending_never_falls(tried: Defended) -> Said:
    """`spent` returns (epsilon, delta), and no round gives privacy back."""
    last = 0.0
    for _, call in tried.spending:
        if not call.place.endswith("spent") or not call.ended:
            continue
        found = call.value
        numbers = isinstance(found, tuple) and len(found) == 2 and all(isinstance(one, int | float) for one in found)
        if not numbers or math.isnan(found[0]) or not 0 <= found[1] < 1:
            yield call.place, f"returns {found!r}, not (epsilon, delta) with delta in [0, 1); return the two numbers"
            return
        if found[0] < last:
            yield call.place, f"falls from {last:g} to {found[0]:g} with a round more; count all rounds so far"
        last = found[0]


SCENE_RULES = (
    *map(_of_calls, CALL_RULES),
    encoded_batches_can_be_trained_on,
    mixtures_say_what_they_are_made_of,
    updates_keep_names_and_shapes,
    finite_stays_finite,
    memory_can_be_kept,
    works_without_batches,
    gradients_fit_the_model,
    spending_never_falls,
)
