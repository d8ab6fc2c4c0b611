"""Whether a defense keeps its contract: `check_defense`, and the rules for what it declares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedsim import batchnorm
from fedsim.testing.calls import changes_nothing_it_is_given, leaves_shared_generators_alone, twice
from fedsim.testing.classes import Candidate, prepared
from fedsim.testing.defending import Defended
from fedsim.testing.defense_rules import SCENE_RULES
from fedsim.testing.findings import Finding, Said, conclude, examine
from fedsim.testing.sites import Place
from fedsim.testing.situations import DEFENDED

METHODS = ("encode", "mix", "gradient", "perturb", "perturb_at")
"""Where a defense can act."""

WITH_GRADIENT = ("spend", "spent", "objection_to", "objection_to_plan")
"""What a defense that makes the gradients has to have besides."""

FLAGS = ("reads_batches", "individual_updates")
"""Class attributes that a defense may declare."""

POLICIES = ("share_batch", "share_running", "local", "freeze", "group_norm")

ASKED = """
if hasattr(plugin, "objection"):
    plugin.objection((), False, "share_running")
"""
"""What is asked before torch is imported."""


def check_defense(cls: type, /, **settings: Any) -> None:
    """Raises ConformanceError, with all points at once, unless `cls` with these settings keeps the contract of a
    defense (`fedsim.clients.defenses.base.Defense`). Takes about a second.

        def test_sign_only_is_a_defense() -> None:
            check_defense(SignOnly)

    Every method that it has is called as a client calls it, in tiny federations: of one image and of several, grey and
    in colour, with and without BatchNorm, under several BatchNorm policies. Those that it objects to are passed over.
    settings: as in an experiment file. Warns (ConformanceWarning) where the docstring names no source.
    """
    candidate = Candidate(cls, "a defense", settings, frozenset({"name", *FLAGS}), ASKED)
    plugin, findings = prepared(candidate)
    if plugin is not None:
        found = examine(DECLARATION_RULES, plugin)
        findings += found
        if not {"acts_somewhere", "private_training_is_accounted_for"} & {one.rule for one in found}:
            findings += _tried(plugin)
    conclude(candidate.name, findings)


def _tried(plugin: Any) -> list[Finding]:
    findings: list[Finding] = []
    objections: dict[str, str] = {}
    for scene in DEFENDED:
        place = Place(scene)
        said = _objection(plugin, place, findings)
        if said:
            objections[scene.name] = said
        else:
            findings += examine(SCENE_RULES, Defended(plugin, place), scene.name)
    return findings + examine((something_could_be_tried,), (plugin, objections))


def _objection(plugin: Any, place: Place, findings: list[Finding]) -> str | None:
    """What speaks against a scene, asked as before a run; what is wrong with how it is said goes to the findings."""
    has, policy = bool(batchnorm.layers(place.model())), place.scene.policy
    if hasattr(plugin, "objection"):
        try:
            said = plugin.objection((), has, policy)
        except Exception:  # `objections_are_words` says so
            return "it raised an error"
        if said:
            return str(said)
    for method, given in (
        ("objection_to", lambda: {"model": place.model(), "policy": policy}),
        ("objection_to_plan", lambda: {"model": place.model(), "plan": place.plan()}),
    ):
        if not hasattr(plugin, method):
            continue
        call = twice(f"{type(plugin).__name__}.{method}", getattr(plugin, method), given)
        findings += examine(OBJECTION_RULES, [call], place.scene.name)
        if call.error is not None or call.value:
            return str(call.error or call.value)
    return None


# --- rules ---------------------------------------------------------------------------------------------------------


def acts_somewhere(plugin: Any) -> Said:
    """A defense has a method for each place where it acts, and acts somewhere."""
    name = type(plugin).__name__
    there = [method for method in METHODS if callable(getattr(plugin, method, None))]
    if not there:
        yield name, f"has none of {', '.join(METHODS)}, so it does nothing; add one"
    for one, other in (("encode", "mix"), ("perturb", "perturb_at")):
        if one in there and other in there:
            yield name, f"has both `{one}` and `{other}`, of which a client calls the latter alone; keep one of them"


def private_training_is_accounted_for(plugin: Any) -> Said:
    """What makes the gradients says what that costs, and where it cannot work."""
    if hasattr(plugin, "gradient"):
        missing = [method for method in WITH_GRADIENT if not callable(getattr(plugin, method, None))]
        if missing:
            yield type(plugin).__name__, f"has `gradient` and not {', '.join(missing)}; add them (see Defense)"


def flags_are_true_or_false(plugin: Any) -> Said:
    """What a defense declares of itself is a class attribute, true or false."""
    for flag in FLAGS:
        value = getattr(type(plugin), flag, False)
        if not isinstance(value, bool):
            yield (
                f"{type(plugin).__name__}.{flag}",
                f"is {value!r}; declare `{flag}: ClassVar[bool] = True`",
            )


def objections_are_words(plugin: Any) -> Said:
    """An objection is a sentence for the user, or None, whatever stands beside the defense."""
    if not hasattr(plugin, "objection"):
        return
    place = f"{type(plugin).__name__}.objection"
    for others, has, policy in _surroundings(plugin):
        try:
            said = plugin.objection(others, has, policy)
        except Exception as error:
            yield place, f"raises {type(error).__name__}: {error}; return words, or None"
            return
        if said is not None and not (isinstance(said, str) and said.strip()):
            yield place, f"returns {said!r}; return why it cannot work, in words, or None"
            return


def _surroundings(plugin: Any) -> Iterator[tuple[tuple[Any, ...], bool, str]]:
    for policy in POLICIES:
        for has in (False, True):
            yield (), has, policy
            yield (plugin,), has, policy


def number_of_images_is_a_number(plugin: Any) -> Said:
    """`images_needed` is asked before round 0, of a defense that mixes."""
    if not hasattr(plugin, "images_needed"):
        return
    place = f"{type(plugin).__name__}.images_needed"
    try:
        needed = plugin.images_needed()
    except Exception as error:
        yield place, f"raises {type(error).__name__}: {error}; return how many images a client must have"
        return
    if isinstance(needed, bool) or not isinstance(needed, int) or needed < 1:
        yield place, f"returns {needed!r}; return how many images a client must have, 1 at least"


DECLARATION_RULES = (
    acts_somewhere,
    private_training_is_accounted_for,
    flags_are_true_or_false,
    objections_are_words,
    number_of_images_is_a_number,
)


def objection_to_is_words(calls: list[Any]) -> Said:
    """So is what speaks against a built model, or a plan."""
    for call in calls:
        if call.error is not None:
            yield call.place, f"raises {type(call.error).__name__}: {call.error}; return words, or None"
        elif call.value is not None and not (isinstance(call.value, str) and call.value.strip()):
            yield call.place, f"returns {call.value!r}; return why it cannot work, in words, or None"


OBJECTION_RULES = (objection_to_is_words, changes_nothing_it_is_given, leaves_shared_generators_alone)


def something_could_be_tried(subject: tuple[Any, dict[str, str]]) -> Said:
    """A defense that works nowhere is none."""
    plugin, objections = subject
    if len(objections) == len(DEFENDED):
        said = "; ".join(f"{name}: {reason}" for name, reason in list(objections.items())[:3])
        yield (
            type(plugin).__name__,
            f"objects to all {len(objections)} situations, so nothing could be tried ({said}); give other settings",
        )
