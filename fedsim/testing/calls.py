"""Calls of a plugin under watch: what came back, what was changed on the way, and which shared generators were used.

The rules at the end hold for every call of every plugin.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import get_state, set_state  # looked at, to see whether a plugin draws from what all share
from torch import Tensor, nn

from fedsim.testing.findings import Said

SHARED = ("torch's", "NumPy's", "Python's")
"""Whose generators the whole process shares."""


@dataclass(frozen=True, eq=False)
class Call:
    """A function that was called twice, with equal arguments.

    place: for a person. given: the arguments of the second call, by name. value: what the first one returned.
    digests: of what each returned, taken at once. changed: paths of arguments that are not as they were. drew: whose
    shared generators were used.
    """

    place: str
    given: Mapping[str, Any] = field(repr=False)
    value: Any = field(repr=False)
    error: Exception | None
    digests: tuple[Mapping[str, str], ...] = field(repr=False)
    changed: tuple[str, ...]
    drew: tuple[str, ...]

    @property
    def ended(self) -> bool:
        """Whether it returned."""
        return self.error is None


def twice(place: str, function: Callable[..., Any], arguments: Callable[[], Mapping[str, Any]]) -> Call:
    """Call it with fresh arguments, and once more. The process's shared generators are put back before each call."""
    digests: list[dict[str, str]] = []
    changed: dict[str, None] = {}
    drew: dict[str, None] = {}
    first, error, given = None, None, {}
    for turn in range(2):
        given = dict(arguments())
        before, states = flattened(given), _states()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = function(*given.values())
        except Exception as caught:
            error = caught
        drew.update(dict.fromkeys(_moved(states)))
        changed.update(dict.fromkeys(differences(before, flattened(given))))
        if error is not None:
            break
        digests.append(flattened(value))
        first = value if turn == 0 else first
    return Call(place, given, first, error, tuple(digests), tuple(changed), tuple(drew))


def _states() -> tuple[Any, ...]:
    return torch.get_rng_state(), get_state(), random.getstate()


def _moved(states: tuple[Any, ...]) -> list[str]:
    """Whose shared generators are not in these states any more; they are put back."""
    now = _states()
    moved = [whose for whose, before, after in zip(SHARED, states, now, strict=True) if not _equal(before, after)]
    torch.set_rng_state(states[0])
    set_state(states[1])
    random.setstate(states[2])
    return moved


def _equal(one: Any, other: Any) -> bool:
    """Whether two states of a generator are the same: tensors, arrays, numbers, and tuples of them."""
    if isinstance(one, tuple):
        return all(map(_equal, one, other))
    return bool((one == other).all()) if isinstance(one, Tensor | np.ndarray) else bool(one == other)


def flattened(value: Any, path: str = "") -> dict[str, str]:
    """A digest of every part of a value, by its path; equal values have equal digests, bit by bit.

    Goes into dataclasses, mappings, sequences and modules (state, mode of each layer). Functions and generators of
    random numbers are passed over.
    """
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        data = plain.view(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        return {path: f"{plain.dtype} {tuple(plain.shape)} {hashlib.sha256(data).hexdigest()}"}
    if isinstance(value, np.ndarray):
        return {path: f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"}
    if isinstance(value, nn.Module):
        modes = {f"{name}.training": module.training for name, module in value.named_modules()}
        graded = {f"{name}.grad": one.grad for name, one in value.named_parameters()}
        return flattened({**value.state_dict(), **modes, **graded}, path)
    if is_dataclass(value) and not isinstance(value, type):
        return _joined({one.name: getattr(value, one.name) for one in fields(value)}, path)
    if isinstance(value, Mapping):
        parts = {key if isinstance(key, str) else f"[{key!r}]": one for key, one in value.items()}
        return _joined(parts, path) | {f"{path}()": str(sorted(parts))}
    if isinstance(value, Set):
        return {path: str(sorted(map(repr, value)))}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return _joined({str(place): one for place, one in enumerate(value)}, path) | {f"{path}()": str(len(value))}
    if isinstance(value, torch.Generator) or callable(value):
        return {}
    return {path: repr(value)}


def _joined(parts: Mapping[str, Any], path: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for name, part in parts.items():
        out |= flattened(part, f"{path}.{name}" if path else name)
    return out


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The paths whose parts are not the same."""
    keys = dict.fromkeys([*before, *after])
    return list(dict.fromkeys(key.removesuffix("()") for key in keys if before.get(key) != after.get(key)))


def shown(paths: Sequence[str], most: int = 3) -> str:
    """A few of them, for a person."""
    named = [f"`{one}`" for one in paths if one] or ["it"]
    return ", ".join(named[:most]) + (f" and {len(named) - most} more" if len(named) > most else "")


# --- rules that hold for every call --------------------------------------------------------------------------------


def raises_nothing(calls: Sequence[Call]) -> Said:
    """A method works wherever no objection of the plugin spoke against it."""
    for call in calls:
        if call.error is not None:
            yield (
                call.place,
                f"raises {type(call.error).__name__}: {call.error}; mend it or, where it cannot work, object",
            )


def changes_nothing_it_is_given(calls: Sequence[Call]) -> Said:
    """What a method is given belongs to others: tensors, jobs, models."""
    for call in calls:
        if call.changed:
            yield call.place, f"changes {shown(call.changed)} of what it is given; work on a copy (`clone`, `replace`)"


def leaves_shared_generators_alone(calls: Sequence[Call]) -> Said:
    """Whoever draws from a generator of the whole process makes everybody's draws depend on the order of work."""
    for call in calls:
        if call.drew:
            yield (
                call.place,
                f"uses {' and '.join(call.drew)} generator, which the whole process shares; draw from `rng` alone "
                "(`generator=rng`), or work without chance where there is none",
            )


def gives_the_same_again(calls: Sequence[Call]) -> Said:
    """The same arguments and the same seed give the same bits, any number of times."""
    for call in calls:
        if len(call.digests) == 2:
            apart = differences(*call.digests)
            if apart:
                yield (
                    call.place,
                    f"returns something else the second time (in {shown(apart)}); let it depend on its arguments and "
                    "on `rng` alone: no clock, no counter, no generator of its own",
                )


CALL_RULES = (raises_nothing, changes_nothing_it_is_given, leaves_shared_generators_alone, gives_the_same_again)
