"""Whether an adversary keeps its contract: `check_adversary`, and the rules for what it declares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsim.adversaries.base import Observation
from fedsim.experiment import KNOWLEDGE, POWERS, SIGHTS
from fedsim.testing import attack_rules as rules
from fedsim.testing.attacks import Tried, asked
from fedsim.testing.classes import Candidate, prepared
from fedsim.testing.findings import Finding, Said, conclude, examine
from fedsim.testing.observations import Trial, trials
from fedsim.testing.threat_words import (
    ASKED,
    ENTRY,
    declared,
    examine_alterations,
    is_declared,
    is_sentence,
    name_of,
    objections_are_words,
    powers_have_their_methods,
)


def check_adversary(
    cls: type, /, *, process: bool = False, observations: Sequence[Observation] | None = None, **settings: Any
) -> None:
    """Raises ConformanceError, with all points at once, unless `cls` with these settings keeps the contract of an
    adversary (`fedsim.adversaries.base.Adversary`). Takes seconds; give settings with which an attack is short.

        def test_gray_is_an_adversary() -> None:
            check_adversary(Gray, level=0.25)

    It is tried on made-up observations of tiny models (with and without BatchNorm, of one image and several, of several
    local steps, of a sum of clients, of mixtures), which show what it declares to need and nothing else. Those that it
    objects to are passed over.

    process: run the attacks once more in a process of their own, from the stored bytes alone. Some seconds more.
    observations: instead of made-up ones; they have to be what the adversary does not object to. `stored` reads those
        of a run.
    settings: as in an experiment file. (Settings called `process` or `observations` cannot be given.)
    Warns (ConformanceWarning) where the docstring names no source.
    """
    candidate = Candidate(cls, "an [[adversaries]] entry", settings, ENTRY | {"powers"}, ASKED)
    plugin, findings = prepared(candidate)
    if plugin is not None:
        findings += examine(DECLARATION_RULES, plugin)
        if is_declared(plugin, "powers"):
            findings += examine_alterations(plugin, None)
        if is_declared(plugin, "needs") and not any(True for _ in has_its_parts(plugin)):
            findings += _tried(plugin, observations, process)
    conclude(candidate.name, findings)


def _tried(plugin: Any, observations: Sequence[Observation] | None, process: bool) -> list[Finding]:
    """What the observations bring to light."""
    findings: list[Finding] = []
    objections: dict[str, str] = {}
    done: list[Tried] = []
    for trial in trials(plugin.needs, observations):
        said = _objection(plugin, trial, findings)
        if said:
            objections[trial.name] = said
            continue
        done.append(Tried(plugin, trial))
        findings += examine(rules.TRIAL_RULES, done[-1], trial.name)
    findings += examine((something_could_be_tried,), (plugin, len(done), objections))
    if done:
        findings += examine(rules.LAST_RULES, done)
    if process and not findings:
        findings += examine((rules.works_in_a_process_of_its_own,), done)
    return findings


def _objection(plugin: Any, trial: Trial, findings: list[Finding]) -> str | None:
    """What the plugin has against a trial; what is wrong with how it says so goes to the findings."""
    if trial.situation is None:
        return None
    try:
        said = plugin.objection(trial.situation) if hasattr(plugin, "objection") else None
    except Exception:  # `objections_are_words` says so
        return "it raised an error"
    if not said and hasattr(plugin, "objection_to"):
        call = asked(plugin, trial)
        said = call.value
        findings += examine(rules.OBJECTION_RULES, [call], trial.name)
        if not call.ended:
            return "it raised an error"
    return said if is_sentence(said) else None


# --- rules ---------------------------------------------------------------------------------------------------------


def has_its_parts(plugin: Any) -> Said:
    """An adversary has needs, powers, capture and attack."""
    for part in ("needs", "powers"):
        if part not in dir(plugin):
            yield name_of(plugin), f"has no `{part}`; add it as a ClassVar or a property, empty if there are none"
    for part in ("capture", "attack"):
        if not callable(getattr(plugin, part, None)):
            yield name_of(plugin), f"has no method `{part}`; see fedsim.adversaries.base.Adversary"


def needs_are_known_words(plugin: Any) -> Said:
    """What it needs is said in the words of the threat model, so that it can be checked before round 0."""
    if "needs" in dir(plugin):
        yield from declared(plugin, "needs", (*SIGHTS, *KNOWLEDGE))


def powers_are_known_words(plugin: Any) -> Said:
    """So is what it must be able to alter."""
    if "powers" in dir(plugin):
        yield from declared(plugin, "powers", POWERS)


def something_could_be_tried(subject: tuple[Any, int, dict[str, str]]) -> Said:
    """A plugin that works nowhere is none."""
    plugin, count, objections = subject
    if count:
        return
    place = name_of(plugin)
    if objections:
        said = "; ".join(f"{name}: {reason}" for name, reason in list(objections.items())[:3])
        yield (
            place,
            (
                f"objects to all {len(objections)} situations, so nothing could be tried ({said}); give other "
                "settings, or `observations` of your own"
            ),
        )
    else:
        needs = ", ".join(sorted(plugin.needs)) or "nothing"
        yield (
            place,
            (
                f"no made-up observation shows all that it needs ({needs}); give `observations` of your own, such as "
                "`stored(run_folder)`"
            ),
        )


DECLARATION_RULES = (
    has_its_parts,
    needs_are_known_words,
    powers_are_known_words,
    powers_have_their_methods,
    objections_are_words,
)
