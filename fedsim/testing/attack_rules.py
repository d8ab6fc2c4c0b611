"""What holds of an adversary's capture, attacks and answers: one rule each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from fedsim import answers, seeding
from fedsim.adversaries.base import Job
from fedsim.testing import elsewhere
from fedsim.testing.attacks import CPU, SEED, Tried, held, no_job, through_bytes, unscorable
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
from fedsim.testing.findings import Said
from fedsim.testing.observations import undeclared
from fedsim.testing.threat_words import is_sentence, name_of


def reads_only_what_it_declares(tried: Tried) -> Said:
    """Whatever a method reads has to be among `needs`, since an adversary is granted nothing else."""
    for call in tried.calls:
        found = undeclared(call.error, tried.trial.withheld)
        if found:
            path, word = found
            yield call.place, f"reads `{path}` without declaring '{word}'; add '{word}' to needs, or do without"


def raises_nothing(tried: Tried) -> Said:
    """A method works wherever no objection of the plugin spoke against it."""
    for call in tried.calls:
        if call.error is not None and not undeclared(call.error, tried.trial.withheld):
            yield (
                call.place,
                f"raises {type(call.error).__name__}: {call.error}; mend it or, where it cannot work, say so in "
                "`objection` or `objection_to`",
            )


def capture_returns_jobs(tried: Tried) -> Said:
    """`capture` gives jobs, each made of observations."""
    for call in tried.captures:
        for job in call.value if call.ended else ():
            problem = no_job(job)
            if problem:
                yield call.place, f"gives {problem}; yield Job((seen,))"


def jobs_survive_storage(tried: Tried) -> Said:
    """A job is bytes between `capture` and `attack`: tensors, and notes and facts of JSON data."""
    for (_, job), (_, read) in zip(tried.jobs, tried.stored, strict=True):
        place = f"{name_of(tried.plugin)}.capture"
        if isinstance(read, Exception):
            yield place, f"gives a job that cannot be stored ({read}); notes and facts are JSON data, the rest tensors"
            continue
        apart = differences(flattened(job), flattened(read))
        if apart:
            yield (
                place,
                f"gives a job of which {shown(apart)} is not the same once it was stored; in notes and facts use texts "
                "for keys, and texts, numbers, lists and tables for values",
            )


def answers_can_be_scored(tried: Tried) -> Said:
    """An answer is a Reconstruction of at most as many finite images as were attacked, of their shape."""
    for place, found, size in _answers(tried):
        against = unscorable(found, tried.trial.shape, size)
        if against:
            yield place, f"its answer cannot be scored: {against}; see fedsim.adversaries.base.Reconstruction"


def answers_are_named(tried: Tried) -> Said:
    """Several answers of `combine` have names that go into file names."""
    for _, call in tried.combined:
        if call.ended and isinstance(call.value, Mapping):
            try:
                answers.check_names(call.value)
            except ValueError as error:
                yield call.place, str(error)


def images_are_in_range(tried: Tried) -> Said:
    """Images are float32 in [0, 1]; what lies outside belongs into `raw`."""
    for place, found, size in _answers(tried):
        if unscorable(found, tried.trial.shape, size) or found.images is None:
            continue
        for name, images in (("images", found.images), ("initial", found.initial)):
            if images is None:
                continue
            if images.dtype != torch.float32:
                yield place, f"its {name} are {images.dtype}; return float32, as by `.float()`"
            elif name == "images" and (images.min() < 0 or images.max() > 1):
                yield place, "its images leave [0, 1]; return `images.clamp(0, 1)`, and what they were before as `raw`"


def _answers(tried: Tried) -> Iterator[tuple[str, Any, int]]:
    """(place, answer, how many images it may have) of every call that returned."""
    for size, call in [*tried.attacks, *tried.combined]:
        if call.ended:
            several = isinstance(call.value, Mapping) and call.place.endswith(".combine")
            for found in call.value.values() if several else [call.value]:
                yield call.place, found, size


def keeps_nothing(tried: Tried) -> Said:
    """An adversary remembers nothing between calls: an attack may run on another machine than the capture did."""
    before = tried.settings_before
    _ = tried.calls
    apart = differences(before, held(tried.plugin))
    if apart:
        yield name_of(tried.plugin), f"keeps something in {shown(apart)} between calls; put it into the job's `notes`"


def _of_calls(rule: Callable[[Sequence[Call]], Said]) -> Callable[[Tried], Said]:
    @functools.wraps(rule)
    def on_all(tried: Tried) -> Said:
        return rule(tried.calls)

    return on_all


TRIAL_RULES = (
    reads_only_what_it_declares,
    raises_nothing,
    capture_returns_jobs,
    jobs_survive_storage,
    answers_can_be_scored,
    answers_are_named,
    images_are_in_range,
    keeps_nothing,
    _of_calls(changes_nothing_it_is_given),
    _of_calls(leaves_shared_generators_alone),
    _of_calls(gives_the_same_again),
)


def objection_to_is_words(calls: Sequence[Call]) -> Said:
    """What speaks against a built model is a sentence for the user, or None."""
    for call in calls:
        if call.error is not None:
            yield call.place, f"raises {type(call.error).__name__}: {call.error}; return words, or None"
        elif call.value is not None and not is_sentence(call.value):
            yield call.place, f"returns {call.value!r}; return why it cannot work, in words, or None"


OBJECTION_RULES = (objection_to_is_words, changes_nothing_it_is_given, leaves_shared_generators_alone)


def something_is_attacked(done: Sequence[Tried]) -> Said:
    """Somewhere, `capture` finds something to attack."""
    if all(tried.captures and all(call.ended and not call.value for call in tried.captures) for tried in done):
        plugin = done[0].plugin
        yield (
            f"{name_of(plugin)}.capture",
            f"gives no job in any of {len(done)} situations; object to what it cannot work on, or give `observations`",
        )


def several_jobs_have_as_many_answers(done: Sequence[Tried]) -> Said:
    """`attack_many`, if it is there, answers every job as `attack` would."""
    plugin = done[0].plugin
    if not hasattr(plugin, "attack_many"):
        return
    tried = next((one for one in done if one.parts), None)
    if tried is None:
        return
    size, job = tried.stored[0]

    def given() -> dict[str, Any]:
        rngs = [seeding.generator(SEED, "attack", place) for place in range(2)]
        return {"jobs": [through_bytes(job), through_bytes(job)], "device": CPU, "rngs": rngs}  # type: ignore[arg-type]

    call = twice(f"{name_of(plugin)}.attack_many", lambda *given: list(plugin.attack_many(*given)), given)
    for rule in (changes_nothing_it_is_given, leaves_shared_generators_alone, gives_the_same_again):
        yield from rule([call])
    if call.error is not None:
        yield call.place, f"raises {type(call.error).__name__}: {call.error}, where `attack` does not; mend it"
    elif len(call.value) != 2:
        yield call.place, f"gives {len(call.value)} answers to 2 jobs; give one for each, in their order"
    for found in call.value or ():
        against = unscorable(found, tried.trial.shape, size)
        if against:
            yield call.place, f"an answer cannot be scored: {against}"


LAST_RULES = (something_is_attacked, several_jobs_have_as_many_answers)


def works_in_a_process_of_its_own(done: Sequence[Tried]) -> Said:
    """From the stored bytes and the plugin's name alone, the same bits come out as here."""
    plugin = done[0].plugin
    jobs = [(job, place) for tried in done for place, (_, job) in enumerate(tried.stored) if isinstance(job, Job)]
    here = [call for tried in done for _, call in tried.attacks]
    there = elsewhere.run(plugin, [job for job, _ in jobs], [place for _, place in jobs])
    place = f"{name_of(plugin)}.attack"
    if isinstance(there, str):
        yield place, f"cannot be run in a process of its own: {there}; let it depend on its settings and the job alone"
        return
    for call, found in zip(here, there, strict=True):
        if "error" in found:
            yield place, f"fails in a process of its own: {found['error']}; let it depend on the job alone"
        elif call.ended and differences(call.digests[0], found):
            apart = shown(differences(call.digests[0], found))
            yield place, f"returns something else in a process of its own (in {apart}); let it depend on the job alone"
