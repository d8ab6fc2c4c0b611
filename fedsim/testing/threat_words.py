"""What a plugin declares in the words of the threat model, and the methods that go with its powers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

from fedsim.adversaries.base import Situation
from fedsim.experiment import KNOWLEDGE, POWERS, SIGHTS, AdversaryEntry
from fedsim.secagg.base import ROUND, STAGES
from fedsim.testing.calls import CALL_RULES, Call, twice
from fedsim.testing.findings import Finding, Said, examine
from fedsim.testing.situations import MLP_ONE, play

WORDS = frozenset({*SIGHTS, *KNOWLEDGE})

METHODS = {"alter_model": "alter_model", "alter_requests": "alter_request"}
"""The method in which a power is used."""

ENTRY = frozenset({*AdversaryEntry.__dataclass_fields__, "name", "needs", "gives"}) - {"plugin"}
"""Words of an [[adversaries]] entry and of a declaration, which no setting of its plugin can have for a name."""

ASKED = """
from fedsim.adversaries.base import Situation
known = Situation("mlp", False, "share_running", "fedsgd", True, (1,))
for one in ("needs", "powers", "gives"):
    getattr(plugin, one, None)
if hasattr(plugin, "objection"):
    plugin.objection(known)
"""
"""What is asked before torch is imported."""


MADE_UP = {"unmask": {"survivors": [0, 1, 2], "dropped": [3], "total": 3}}
"""Entries of queries that an altered one could be made from."""


def name_of(plugin: Any) -> str:
    """For a person."""
    return type(plugin).__name__


def declared(plugin: Any, attribute: str, known: Collection[str]) -> Said:
    """What an attribute with words says that no threat model has."""
    place = f"{name_of(plugin)}.{attribute}"
    try:
        words = getattr(plugin, attribute)
    except Exception as error:
        yield place, f"raises {type(error).__name__}: {error}; a declaration depends on the settings alone"
        return
    if not isinstance(words, frozenset) or not all(isinstance(one, str) for one in words):
        yield place, f"is {words!r}, not a frozenset of words; write `frozenset({{...}})`"
        return
    for word in sorted(words - set(known)):
        yield place, f"names '{word}', which no threat model has; known: {', '.join(known)}"


def is_declared(plugin: Any, attribute: str) -> bool:
    """Whether it is there, with known words alone."""
    known = POWERS if attribute == "powers" else (*SIGHTS, *KNOWLEDGE)
    return hasattr(plugin, attribute) and not any(True for _ in declared(plugin, attribute, known))


def powers_have_their_methods(plugin: Any) -> Said:
    """A power that is asked for is used, and a message is altered by nobody without the power."""
    if not is_declared(plugin, "powers"):
        return
    powers = plugin.powers
    for power, method in METHODS.items():
        if power in powers and not callable(getattr(plugin, method, None)):
            yield (
                name_of(plugin),
                f"asks for the power '{power}' and has no method `{method}`; add it, or drop the power",
            )
        elif power not in powers and hasattr(plugin, method):
            yield (
                f"{name_of(plugin)}.{method}",
                f"is never called, as the power '{power}' is not among `powers`; declare it, or remove the method",
            )


def objections_are_words(plugin: Any) -> Said:
    """An objection is a sentence for the user, or None."""
    if not hasattr(plugin, "objection"):
        return
    place = f"{name_of(plugin)}.objection"
    for known in situations():
        try:
            said = plugin.objection(known)
        except Exception as error:
            yield place, f"raises {type(error).__name__}: {error} for {known}; return words, or None"
            return
        if said is not None and not is_sentence(said):
            yield place, f"returns {said!r} for {known}; return why it cannot work, in words, or None"
            return


def is_sentence(said: Any) -> bool:
    """Whether an objection says anything."""
    return isinstance(said, str) and bool(said.strip())


def situations() -> Iterator[Situation]:
    """Every kind of situation that an experiment can be in."""
    policies = ("share_batch", "share_running", "local", "freeze", "group_norm")
    algorithms = (("fedsgd", True), ("fedavg", True), ("fedavg", False))
    targets = (((1,), False), ((4,), False), ((1, 4), False), ((2, 2), True))
    for has, policy, (algorithm, one), (sizes, aggregate) in product(
        (None, True, False), policies, algorithms, targets
    ):
        for defenses in (None, ((),) * len(sizes), (("gradient_noise",),) * len(sizes), (("mixup",),) * len(sizes)):
            for mode in ("off", "ideal", "secagg+") if aggregate else ("off",):
                yield Situation("mlp", has, policy, algorithm, one, sizes, aggregate, defenses, mode)


# --- altered messages ----------------------------------------------------------------------------------------------


def examine_alterations(plugin: Any, requests: Mapping[str, Mapping[str, Any]] | None) -> list[Finding]:
    """What is wrong with the methods of its powers. requests: a query of each stage; made-up ones if None."""
    calls = []
    place, powers = name_of(plugin), plugin.powers
    if "alter_model" in powers and callable(getattr(plugin, "alter_model", None)):
        for client in (0, 3):
            calls.append(
                twice(
                    f"{place}.alter_model",
                    plugin.alter_model,
                    lambda client=client: {  # type: ignore[misc]
                        "round_": 1,
                        "client": client,
                        "targets": (0, 1),
                        "parameters": {name: value.clone() for name, value in play(MLP_ONE, 0, 1).parameters.items()},
                    },
                )
            )
    if "alter_requests" in powers and callable(getattr(plugin, "alter_request", None)):
        for stage in STAGES if requests is None else requests:
            entries = {ROUND: 1, **MADE_UP.get(stage, {})} if requests is None else requests[stage]
            calls.append(
                twice(
                    f"{place}.alter_request",
                    plugin.alter_request,
                    lambda stage=stage, entries=entries: {  # type: ignore[misc]
                        "round_": 1,
                        "client": 0,
                        "targets": (0, 1),
                        "stage": stage,
                        "request": dict(entries),
                    },
                )
            )
    # A made-up query need not hold all the entries of a real one.
    calls = [one for one in calls if requests is not None or not isinstance(one.error, KeyError)]
    return examine((*CALL_RULES, altered_models_fit, altered_requests_can_be_sent), calls)


def altered_models_fit(calls: list[Call]) -> Said:
    """A client refuses a model that is not of the names, shapes and types of its own, or not finite."""
    for call in calls:
        if not call.place.endswith("alter_model") or not call.ended:
            continue
        sent, like = call.value, call.given["parameters"]
        if not isinstance(sent, Mapping) or list(sent) != list(like):
            yield call.place, "does not return the parameters by name, all of them in the model's order; return a dict"
            continue
        for name, value in sent.items():
            problem = misshapen(value, like[name])
            if problem:
                yield call.place, f"`{name}` {problem}; keep shape and type, with finite numbers"


def altered_requests_can_be_sent(calls: list[Call]) -> Said:
    """A query holds bytes, texts, numbers, and lists of them."""
    for call in calls:
        if not call.place.endswith("alter_request") or not call.ended:
            continue
        if not isinstance(call.value, Mapping):
            yield call.place, f"returns {type(call.value).__name__}, not the entries of a query; return a dict"
            continue
        for key, value in call.value.items():
            items = value if isinstance(value, list) else [value]
            if not isinstance(key, str) or not all(isinstance(one, bytes | str | int | float) for one in items):
                yield call.place, f"entry {key!r} is {value!r}; a query holds bytes, numbers and lists of them by name"


def misshapen(value: Any, like: Tensor) -> str | None:
    """How a tensor differs in kind from another, or that it is not finite."""
    if not isinstance(value, Tensor):
        return f"is {type(value).__name__}, not a tensor"
    if value.shape != like.shape or value.dtype != like.dtype:
        return f"is {value.dtype} {tuple(value.shape)}, not {like.dtype} {tuple(like.shape)}"
    return None if bool(torch.isfinite(value).all()) else "holds NaN or Inf"
