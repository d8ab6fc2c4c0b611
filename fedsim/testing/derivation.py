"""Whether a derivation keeps its contract: `check_derivation`, and its rules."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedsim.adversaries.base import Derived, Observation
from fedsim.adversaries.storage import observation_bytes, observation_from
from fedsim.experiment import KNOWLEDGE, POWERS, SIGHTS
from fedsim.testing.calls import (
    Call,
    changes_nothing_it_is_given,
    differences,
    flattened,
    gives_the_same_again,
    leaves_shared_generators_alone,
    shown,
    twice,
)
from fedsim.testing.classes import Candidate, prepared
from fedsim.testing.findings import Finding, Said, conclude, examine
from fedsim.testing.observations import GRANTS, PUBLIC, undeclared, word_of
from fedsim.testing.secured import Seen, everything_seen
from fedsim.testing.threat_words import (
    ASKED,
    WORDS,
    declared,
    examine_alterations,
    is_declared,
    is_sentence,
    name_of,
    objections_are_words,
    powers_have_their_methods,
)


def check_derivation(
    cls: type,
    /,
    *,
    observations: Sequence[Observation] | None = None,
    requests: Mapping[str, Mapping[str, Any]] | None = None,
    **settings: Any,
) -> None:
    """Raises ConformanceError, with all points at once, unless `cls` with these settings keeps the contract of a
    derivation (`fedsim.adversaries.base.Derivation`).

        def test_collusion_is_a_derivation() -> None:
            check_derivation(Collusion)

    It is tried on made-up rounds: single updates, sums of different clients (with colluders), masked messages; each
    with what it declares to need and nothing else. If it gives anything, at least one of them has to let it.

    observations: instead of made-up ones, all of them at once. requests: the entries of a query of a secure aggregation
    by stage, for `alter_request`, instead of made-up ones. settings: as in an experiment file. (Settings of these two
    names cannot be given.) Warns (ConformanceWarning) where the docstring names no source.
    """
    candidate = Candidate(cls, "a derivation", settings, frozenset({"name", "needs", "powers", "gives"}), ASKED)
    plugin, findings = prepared(candidate)
    if plugin is not None:
        findings += examine(DECLARATION_RULES, plugin)
        if is_declared(plugin, "powers"):
            findings += examine_alterations(plugin, requests)
        if is_declared(plugin, "needs") and is_declared(plugin, "gives") and callable(getattr(plugin, "derive", None)):
            findings += _tried(plugin, observations)
    conclude(candidate.name, findings)


@dataclass(frozen=True, eq=False)
class Tried:
    """One derivation on what it was shown."""

    plugin: Any
    seen: Seen

    @functools.cached_property
    def calls(self) -> list[Call]:
        """The one call of `derive`."""
        return [
            twice(
                f"{name_of(self.plugin)}.derive",
                self.plugin.derive,
                lambda: {"seen": [observation_from(observation_bytes(one)) for one in self.seen.observations]},
            )
        ]

    @property
    def derived(self) -> Iterator[tuple[str, Observation]]:
        """(place, observation) of all that it made, as far as these are observations."""
        for call in self.calls:
            if call.ended and isinstance(call.value, Derived):
                for one in call.value.observations:
                    if isinstance(one, Observation):
                        yield call.place, one

    @property
    def policy(self) -> str:
        """The BatchNorm policy of what was shown."""
        return str(self.seen.observations[0].facts.get("batchnorm")) if self.seen.observations else ""


def _tried(plugin: Any, observations: Sequence[Observation] | None) -> list[Finding]:
    findings: list[Finding] = []
    done: list[Tried] = []
    objections: dict[str, str] = {}
    for seen in everything_seen(plugin.needs, observations):
        said = _objection(plugin, seen)
        if said:
            objections[seen.name] = said
            continue
        done.append(Tried(plugin, seen))
        findings += examine(TRIAL_RULES, done[-1], seen.name)
    return findings + examine((something_is_derived,), (plugin, done, objections))


def _objection(plugin: Any, seen: Seen) -> str | None:
    if seen.situation is None or not hasattr(plugin, "objection"):
        return None
    try:
        said = plugin.objection(seen.situation)
    except Exception:  # `objections_are_words` says so
        return "it raised an error"
    return said if is_sentence(said) else None


# --- rules ---------------------------------------------------------------------------------------------------------


def has_its_parts(plugin: Any) -> Said:
    """A derivation has needs, powers, gives and derive."""
    for part in ("needs", "powers", "gives"):
        if part not in dir(plugin):
            yield name_of(plugin), f"has no `{part}`; add it as a ClassVar or a property, empty if there are none"
    if not callable(getattr(plugin, "derive", None)):
        yield name_of(plugin), "has no method `derive`; see fedsim.adversaries.base.Derivation"


def needs_powers_and_gives_are_known_words(plugin: Any) -> Said:
    """All three are said in the words of the threat model."""
    for part in ("needs", "powers", "gives"):
        if part in dir(plugin):
            yield from declared(plugin, part, POWERS if part == "powers" else (*SIGHTS, *KNOWLEDGE))


DECLARATION_RULES = (
    has_its_parts,
    needs_powers_and_gives_are_known_words,
    powers_have_their_methods,
    objections_are_words,
)


def reads_only_what_it_declares(tried: Tried) -> Said:
    """Whatever it reads has to be among `needs`, since an adversary is granted nothing else."""
    for call in tried.calls:
        found = undeclared(call.error, tried.seen.withheld)
        if found:
            yield call.place, f"reads `{found[0]}` without declaring '{found[1]}'; add '{found[1]}' to needs"


def raises_nothing(tried: Tried) -> Said:
    """What cannot be told apart is said in the notes."""
    for call in tried.calls:
        if call.error is not None and not undeclared(call.error, tried.seen.withheld):
            text = f"raises {type(call.error).__name__}: {call.error}"
            yield call.place, f"{text}; pass over what it cannot use, and say so in the notes of what it derived"


def returns_derived(tried: Tried) -> Said:
    """`derive` returns a Derived: a tuple of observations, and notes of words."""
    for call in tried.calls:
        if not call.ended:
            continue
        if not isinstance(call.value, Derived):
            yield call.place, f"returns {type(call.value).__name__}, not Derived; return Derived(observations, notes)"
        elif not isinstance(call.value.observations, tuple) or not all(
            isinstance(one, Observation) for one in call.value.observations
        ):
            yield call.place, "returns observations that are no tuple of Observation; return Derived((one, ...))"
        elif not isinstance(call.value.notes, tuple) or not all(isinstance(one, str) for one in call.value.notes):
            yield call.place, "returns notes that are no tuple of texts; return Derived(observations, (note, ...))"


def grants_what_it_gives(tried: Tried) -> Said:
    """`facts["granted"]` of what it derived names all that it says to give, in known words."""
    for place, one in tried.derived:
        granted = set(one.facts.get("granted", ()))
        missing = sorted(tried.plugin.gives - granted)
        if missing:
            yield place, f"derives an observation without {missing} among its `granted`, though it gives that; add it"
        for word in sorted(granted - WORDS):
            yield place, f"derives an observation that grants '{word}', which no threat model has; leave it out"


def shows_what_it_grants(tried: Tried) -> Said:
    """What is granted is there, and what is there is granted."""
    for place, one in tried.derived:
        granted = set(one.facts.get("granted", ())) & WORDS
        there = {word_of(path, tried.policy) for path in one.tensors}
        there |= {word for word, (_, keys) in GRANTS.items() if keys and keys[0] in one.facts}
        for word in sorted(granted - there - {"own_data"}):
            yield (
                place,
                f"derives an observation that grants '{word}' and shows nothing of it; show it, or drop it",
            )
        for word in sorted(one_ for one_ in there - granted if one_ is not None):
            yield place, f"derives an observation that shows '{word}' without granting it; drop it, or grant it"


def updates_fit_the_model(tried: Tried) -> Said:
    """A derived update has the names and shapes of the model's parameters, and finite numbers."""
    for place, one in tried.derived:
        model, update = one.part("model"), one.part("update")
        if not update or not model:
            continue
        if list(update) != list(model):
            yield place, "derives an update whose tensors are not those of the model, in its order; name all of them"
            continue
        for name, value in update.items():
            if value.shape != model[name].shape:
                yield place, f"derives `update/{name}` of shape {tuple(value.shape)}, not {tuple(model[name].shape)}"
            elif value.dtype != torch.float32 or not bool(torch.isfinite(value).all()):
                yield (
                    place,
                    f"derives `update/{name}` that is not finite float32; convert it",
                )


def tells_of_one_client(tried: Tried) -> Said:
    """A derived observation is of one client, in a round that was shown."""
    rounds = {one.round for one in tried.seen.observations}
    for place, one in tried.derived:
        if one.facts.get("clients"):
            yield place, "derives an observation of several `clients`; leave that fact out: it is of one"
        if one.round not in rounds:
            yield place, f"derives an observation of round {one.round}, of which nothing was shown; name one that was"


def keeps_public_facts(tried: Tried) -> Said:
    """The plugin that attacks what was derived needs the facts of the model and of the data."""
    for place, one in tried.derived:
        source = tried.seen.observations[0].facts
        missing = [key for key in PUBLIC if key in source and key not in one.facts]
        if missing:
            yield place, f"derives an observation without the facts {', '.join(missing)}; keep those of its source"


def survives_storage(tried: Tried) -> Said:
    """What was derived is stored before it is attacked: tensors, and facts of JSON data."""
    for place, one in tried.derived:
        try:
            apart = differences(flattened(one), flattened(observation_from(observation_bytes(one))))
        except Exception as error:
            yield place, f"derives an observation that cannot be stored ({error}); facts are JSON data"
            continue
        if apart:
            yield place, f"derives an observation of which {shown(apart)} is not the same once stored; use JSON data"


def something_is_derived(subject: tuple[Any, Sequence[Tried], Mapping[str, str]]) -> Said:
    """A derivation that gives something gives it somewhere."""
    plugin, done, objections = subject
    if any(True for tried in done for _ in tried.derived) or (done and not plugin.gives):
        return
    if any(not call.ended or not isinstance(call.value, Derived) for tried in done for call in tried.calls):
        return  # other rules say so
    place, own = f"{name_of(plugin)}.derive", "give `observations` of your own, such as `stored(run_folder)`"
    if done:
        notes = "; ".join(note for tried in done for call in tried.calls for note in getattr(call.value, "notes", ()))
        yield place, f"derives nothing of {len(done)} made-up situations (it says: {notes or 'nothing'}); {own}"
    elif objections:
        said = "; ".join(f"{name}: {reason}" for name, reason in objections.items())
        yield place, f"objects to all situations, so nothing could be tried ({said}); {own}"
    else:
        yield place, f"no made-up observations show all that it needs ({', '.join(sorted(plugin.needs))}); {own}"


def _of_calls(rule: Callable[[Sequence[Call]], Said]) -> Callable[[Tried], Said]:
    @functools.wraps(rule)
    def on_all(tried: Tried) -> Said:
        return rule(tried.calls)

    return on_all


TRIAL_RULES = (
    reads_only_what_it_declares,
    raises_nothing,
    returns_derived,
    grants_what_it_gives,
    shows_what_it_grants,
    updates_fit_the_model,
    tells_of_one_client,
    keeps_public_facts,
    survives_storage,
    _of_calls(changes_nothing_it_is_given),
    _of_calls(leaves_shared_generators_alone),
    _of_calls(gives_the_same_again),
)
