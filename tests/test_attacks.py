"""Running attacks: as one batch where a plugin offers it, one failing alone, and what a plugin may not return.

The plugins are classes of this file, so they run in the tests' own process; `tests/attackers` has the other one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from fedsim import answers, progress
from fedsim.adversaries.base import Job, Observation, Reconstruction
from fedsim.experiment import AdversaryEntry, Component
from fedsim.runs import RunFolder
from fedsim.simulation import Outcome, simulate

CALLS: list[list[int]] = []
"""The clients of the jobs of each call of the plugin; emptied by `calls`."""


@pytest.fixture
def calls() -> list[list[int]]:
    CALLS.clear()
    return CALLS


@dataclass(frozen=True)
class Together:
    """Answers with an image as bright as the client's number, and an objective drawn from its own generator.

    fault: what goes wrong: with the batch, and with client 1.
    """

    fault: str = ""
    wanted: bool = True

    needs: ClassVar[frozenset[str]] = frozenset({"num_examples"})
    powers: ClassVar[frozenset[str]] = frozenset()

    def capture(self, seen: Observation) -> Iterator[Job]:
        yield Job((seen,))

    def batches(self, device: torch.device) -> bool:
        if self.fault == "batches":
            raise RuntimeError("cannot say")
        return self.wanted

    def attack(self, job: Job, device: torch.device, rng: torch.Generator) -> Reconstruction:
        CALLS.append([job.observations[0].client])
        if self.fault == "client 1" and job.observations[0].client == 1:
            raise RuntimeError("not this one")
        return self._answer(job, rng)

    def attack_many(self, jobs: Sequence[Job], device: torch.device, rngs: Sequence[torch.Generator]) -> Any:
        CALLS.append([job.observations[0].client for job in jobs])
        if self.fault == "client 1":
            raise RuntimeError("one of them")
        answers: list[Any] = [self._answer(job, rng) for job, rng in zip(jobs, rngs, strict=True)]
        match self.fault:
            case "too few":
                return answers[:-1]
            case "too many":
                return answers * 2
            case "none":
                return None
            case "one is bad":
                return [answers[0], replace(answers[1], images=None), *answers[2:]]
            case "a generator":
                return iter(answers)
        progress.report(1, 2, "half")
        progress.report(2, 2, "all")
        return answers

    def _answer(self, job: Job, rng: torch.Generator) -> Reconstruction:
        seen = job.observations[0]
        images = torch.full((seen.facts["num_examples"], 1, 8, 8), seen.client / 10)
        return Reconstruction(images, None, float(torch.rand((), generator=rng)), 1)


class Recording:
    def __init__(self) -> None:
        self.said: list[tuple[str, int, int, str]] = []
        self.warnings: list[str] = []

    def rounds(self, *_: Any) -> None: ...

    def attack(self, *said: Any) -> None:
        self.said.append(said)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def attacked(small: Any, tmp_path: Path) -> Any:
    """`attacked(plugin)` -> the outcome of a run in which the plugin attacks clients 0 to 2, and what was shown."""

    def run(plugin: Any, name: str = "run", **entry: Any) -> tuple[Outcome, Recording]:
        values: dict[str, Any] = {"vantage": "link", "targets": (2, 0, 1), "rounds": (1,), **entry}
        made = AdversaryEntry(id="spy", plugin=Component("together", plugin), **values)
        base = small(rounds=1, data={"name": "digits"}, scores={"lpips": "off"}, runtime={"isolation": "none"})
        screen = Recording()
        return simulate(replace(base, adversaries=(made,)), RunFolder.create(tmp_path / name), screen), screen

    return run


def results(outcome: Outcome) -> list[tuple[int, str, float]]:
    return [(line["client"], line["status"], line["objective"]) for line in outcome.attacks]


def test_jobs_that_are_better_run_together_are_one_call(attacked: Any, calls: list[list[int]]) -> None:
    alone, _ = attacked(Together(wanted=False), "alone")
    assert calls == [[0], [1], [2]]
    calls.clear()
    together, screen = attacked(Together(), "together")
    assert calls == [[0, 1, 2]]
    # Each line has its own client's answer, drawn from that job's own generator. The plugin's settings are part of
    # a job's address, so the numbers drawn differ between the two runs.
    assert [line["client"] for line in together.attacks] == [0, 1, 2]
    assert [line["psnr"] for line in together.attacks] == [line["psnr"] for line in alone.attacks]
    assert len({line["psnr"] for line in alone.attacks} | {line["objective"] for line in together.attacks}) == 6
    assert all(line["seconds"] > 0 for line in together.attacks)
    assert screen.said[:3] == [
        ("spy, 3 jobs at once", 0, 1, ""),
        ("spy, 3 jobs at once", 1, 2, "half"),
        ("spy, 3 jobs at once", 1, 1, ""),
    ]
    assert together.warnings == []


def test_one_job_is_no_batch(attacked: Any, calls: list[list[int]]) -> None:
    outcome, _ = attacked(Together(), targets=(1,))
    assert calls == [[1]]
    assert outcome.quarantined == 0


def test_a_batch_that_fails_is_run_one_by_one_and_the_failing_job_fails_alone(
    attacked: Any, calls: list[list[int]]
) -> None:
    outcome, screen = attacked(Together("client 1"))
    assert calls == [[0, 1, 2], [0], [1], [2]]
    assert [line["status"] for line in outcome.attacks] == ["done", "failed", "done"]
    assert outcome.attacks[1]["error"] == "RuntimeError: not this one"
    assert outcome.warnings == screen.warnings
    assert outcome.warnings == [
        "adversary 'spy' failed on 3 jobs at once and runs them one by one: RuntimeError: one of them",
        "adversary 'spy' failed on client 1, round 1: RuntimeError: not this one",
    ]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("too few", "ValueError: attack_many returned 2 answers to 3 jobs"),
        ("too many", "ValueError: attack_many returned 6 answers to 3 jobs"),
        ("none", "TypeError: 'NoneType' object is not iterable"),
        ("batches", "RuntimeError: cannot say"),
    ],
)
def test_an_answer_that_fits_no_batch_is_said_and_asked_for_again_one_by_one(
    attacked: Any, calls: list[list[int]], fault: str, said: str
) -> None:
    outcome, _ = attacked(Together(fault))
    assert calls[-3:] == [[0], [1], [2]]
    assert [status for _, status, _ in results(outcome)] == ["done"] * 3
    assert outcome.warnings == [f"adversary 'spy' failed on 3 jobs at once and runs them one by one: {said}"]


def test_one_bad_answer_of_a_batch_fails_alone(attacked: Any, calls: list[list[int]]) -> None:
    outcome, _ = attacked(Together("one is bad"))
    assert calls == [[0, 1, 2]]
    assert [line["status"] for line in outcome.attacks] == ["done", "failed", "done"]
    assert "neither images nor labels" in outcome.attacks[1]["error"]


def test_answers_may_come_one_after_another(attacked: Any, calls: list[list[int]]) -> None:
    outcome, _ = attacked(Together("a generator"))
    assert calls == [[0, 1, 2]]
    assert outcome.quarantined == 0


def test_after_a_failed_batch_every_job_draws_as_if_it_had_been_alone(attacked: Any, calls: list[list[int]]) -> None:
    first, _ = attacked(Together("too few"), "one")
    second, _ = attacked(Together("too few"), "two", targets=(1,))
    assert calls[-1] == [1]
    assert results(first)[1] == results(second)[0]


# --- what may be answered -------------------------------------------------------------------------------------------

GOOD = Reconstruction(torch.zeros(2, 1, 8, 8), None, 0.5, 3, ((0, 1.0), (3, 0.5)), torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"objective": None}, "objective must be a number, not NoneType"),
        ({"objective": torch.tensor(1.0)}, "objective must be a number, not Tensor"),
        ({"iterations": 2.5}, "iterations must be a whole number"),
        ({"iterations": float("nan")}, "iterations must be a whole number"),
        ({"history": ((0, None),)}, "history must be pairs"),
        ({"history": ((0.5, 1.0),)}, "history must be pairs"),
        ({"status": None}, "status must be a word"),
        ({"status": ""}, "status must be a word"),
        ({"notes": {"tensor": torch.zeros(2)}}, "notes must be JSON data"),
        ({"notes": {"set": {1}}}, "notes must be JSON data"),
        ({"initial": torch.zeros(2, 3, 8, 8)}, "initial have shape"),
        ({"initial": torch.full((2, 1, 8, 8), float("nan"))}, "the returned initial hold NaN"),
    ],
)
def test_what_cannot_be_written_down_is_the_plugins_failure(change: dict[str, Any], why: str) -> None:
    answers.check(GOOD, (1, 8, 8), 2)
    with pytest.raises(ValueError, match=why):
        answers.check(replace(GOOD, **change), (1, 8, 8), 2)


def test_objectives_that_are_not_finite_are_an_answer() -> None:
    answers.check(replace(GOOD, objective=float("nan"), history=((0, float("inf")),)), (1, 8, 8), 2)


@pytest.mark.parametrize(
    "found", [replace(GOOD, notes={"x": object()}), replace(GOOD, labels=torch.tensor([2**62] * 2))]
)
def test_a_bad_answer_ends_no_run(
    attacked: Any, monkeypatch: pytest.MonkeyPatch, found: Reconstruction, tmp_path: Path
) -> None:
    monkeypatch.setattr(Together, "_answer", lambda *_: found)
    outcome, _ = attacked(Together(wanted=False))
    assert [line["status"] for line in outcome.attacks] == ["failed"] * 3
    written = [json.loads(line) for line in (tmp_path / "run" / "attacks.jsonl").read_text().splitlines()]
    assert [line["error"] for line in written] == [line["error"] for line in outcome.attacks]


# --- sums of clients ------------------------------------------------------------------------------------------------


def test_the_sum_of_many_clients_has_a_picture_and_a_short_name(small: Any, tmp_path: Path) -> None:
    count = 60
    entry = AdversaryEntry("spy", Component("x", Together()), "server", tuple(range(count)), (1,), aggregate=True)
    experiment = small(
        rounds=1,
        clients={"count": count, "algorithm": "fedsgd", "batch_size": 1, "groups": _noisy(members=[3])},
        scores={"lpips": "off"},
        runtime={"isolation": "none"},
    )
    screen = Recording()
    outcome = simulate(replace(experiment, adversaries=(entry,)), RunFolder.create(tmp_path / "run"), screen)
    (line,) = outcome.attacks
    assert (line["client"], line["clients"], line["batch"]) == (None, list(range(count)), count)
    assert len(line["picture"]) < 80
    assert (tmp_path / "run" / line["picture"]).is_file()
    assert {said[0] for said in screen.said} == {"spy, clients 0 to 59, round 1"}
    # A defense that not all of them have is told with whose it is.
    assert line["defenses"] == [{"name": "gradient_noise", "kind": "gaussian", "std": 0.5, "clients": [3]}]


def _noisy(members: list[int]) -> list[dict[str, Any]]:
    return [{"members": members, "batch_size": 1, "defenses": [{"name": "gradient_noise", "std": 0.5}]}]
