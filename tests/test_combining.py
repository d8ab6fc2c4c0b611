"""Answers of several rounds put together by a plugin, and how images that say which they are, are paired and scored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from fedsim import scoring
from fedsim.adversaries.base import Job, Observation, Reconstruction
from fedsim.experiment import AdversaryEntry, Component, Experiment
from fedsim.report.reading import attack_of
from fedsim.report.table import attack_cells
from fedsim.runs import RunFolder
from fedsim.scoring import Truth, pairing
from fedsim.simulation import Outcome, simulate

INLINE = {"isolation": "none"}
"""The plugins are classes of this file, which no other process could find."""


@dataclass(frozen=True)
class Means:
    """Answers each round with black images; put together, an image a round, as bright as the rounds are many."""

    fails: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()

    needs: ClassVar[frozenset[str]] = frozenset({"num_examples"})
    powers: ClassVar[frozenset[str]] = frozenset()

    def capture(self, seen: Observation) -> Iterator[Job]:
        yield Job((seen,))

    def attack(self, job: Job, device: torch.device, rng: torch.Generator) -> Reconstruction:
        seen = job.observations[0]
        if seen.round in self.fails:
            raise RuntimeError(f"not round {seen.round}")
        return Reconstruction(torch.zeros(1, 1, 8, 8), None, float(seen.round), 3)

    def combine(self, parts: Sequence[tuple[Job, Reconstruction]], device: torch.device, rng: torch.Generator) -> Any:
        rounds = [job.observations[0].round for job, _ in parts]
        assert [found.objective for _, found in parts] == rounds == sorted(rounds)
        images = torch.full((2, 1, 8, 8), len(rounds) / 10)
        whole = Reconstruction(images, None, 0.5, sum(found.iterations for _, found in parts), ids=torch.tensor([0, 1]))
        return dict.fromkeys(self.answers, whole) or whole


class Screen:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def rounds(self, done: int, total: int, record: Any) -> None: ...
    def attack(self, name: str, done: int, total: int, note: str) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def run(experiment: Experiment, plugin: Means, path: Path) -> tuple[Outcome, Screen]:
    entry = AdversaryEntry("means", Component("means", plugin), "server", (0, 1), (1, 2, 3), ("labels",))
    screen = Screen()
    return simulate(replace(experiment, adversaries=(entry,)), RunFolder.create(path), screen), screen


@pytest.fixture
def experiment(small: Any) -> Experiment:
    made: Experiment = small(
        rounds=3, clients={"count": 2, "batches": "in_order"}, scores={"lpips": "off"}, runtime=INLINE
    )
    return made


def test_a_plugin_that_combines_gives_one_answer_for_all_rounds_of_a_client(
    experiment: Experiment, tmp_path: Path
) -> None:
    outcome, _ = run(experiment, Means(), tmp_path / "run")
    assert [(line["client"], line["rounds"], line["iterations"]) for line in outcome.attacks] == [
        (0, [1, 2, 3], 9),
        (1, [1, 2, 3], 9),
    ]
    # Twelve images in three batches of four; two of the first batch have a guess.
    assert [line["batch"] for line in outcome.attacks] == [12, 12]
    assert all(len(line["per_image"]["psnr"]) == 2 for line in outcome.attacks)
    assert len({line["job"] for line in outcome.attacks}) == 2
    written = (tmp_path / "run" / "attacks.jsonl").read_text().splitlines()
    assert [json.loads(line)["rounds"] for line in written] == [[1, 2, 3], [1, 2, 3]]


def test_a_round_that_fails_is_left_out_and_named(experiment: Experiment, tmp_path: Path) -> None:
    outcome, screen = run(experiment, Means(fails=(2,)), tmp_path / "run")
    assert [line["iterations"] for line in outcome.attacks] == [6, 6]
    assert sum("round 2" in text and "left out" in text for text in screen.warnings) == 2


def test_where_every_round_fails_the_answer_is_a_failure(experiment: Experiment, tmp_path: Path) -> None:
    outcome, _ = run(experiment, Means(fails=(1, 2, 3)), tmp_path / "run")
    assert [line["status"] for line in outcome.attacks] == ["failed", "failed"]
    assert outcome.quarantined == 2


def test_several_answers_are_lines_of_their_own_each_with_its_name(experiment: Experiment, tmp_path: Path) -> None:
    outcome, _ = run(experiment, Means(answers=("quick", "slow")), tmp_path / "run")
    assert [(line["adversary"], line["client"]) for line in outcome.attacks] == [
        ("means-quick", 0),
        ("means-slow", 0),
        ("means-quick", 1),
        ("means-slow", 1),
    ]
    assert len({line["picture"] for line in outcome.attacks}) == 4
    # One adversary of the experiment gave them, from all rounds; what it knows is that one's.
    read = [attack_of(line) for line in outcome.attacks]
    assert {(attack.entry, attack.when) for attack in read} == {("means", "1-3")}
    assert all(row[2] == "1-3" and row[4] == "2 of 12" for row in attack_cells(read).rows)


def truth(count: int, batch: int) -> Truth:
    images = torch.arange(count).float().reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8) / count
    ids = torch.arange(count) + 100
    return Truth(images, torch.zeros(count, dtype=torch.int64), ids, torch.arange(count) // batch)


def test_images_with_ids_are_paired_within_their_batch_alone() -> None:
    real = truth(6, 2)
    guess = real.images.flip(0)
    # By themselves, guesses find their images wherever they are.
    assert pairing(guess, None, real).tolist() == [5, 4, 3, 2, 1, 0]
    # These say that they are the images of their own place: only within a batch of two may they change places.
    assert pairing(guess, real.ids, real).tolist() == [1, 0, 3, 2, 5, 4]
    assert pairing(guess[:3], real.ids[:3], real).tolist() == [1, 0, -1, 2, -1, -1]


def test_images_of_one_are_paired_as_they_say() -> None:
    real = truth(3, 1)
    assert pairing(real.images.flip(0), torch.tensor([101, 102, 100]), real).tolist() == [2, 0, 1]


def test_ids_of_images_that_were_not_there_score_nothing() -> None:
    real = truth(2, 1)
    order = pairing(real.images, torch.tensor([7, 8]), real)
    with pytest.raises(ValueError, match="none of the images"):
        scoring.score(real.images, None, real, "off", order)


def test_the_truth_of_several_rounds_has_each_image_once(tmp_path: Path) -> None:
    from fedsim.protocol import Batch

    def batch(values: Sequence[int]) -> tuple[Batch, Tensor]:
        ids = torch.tensor(values)
        return Batch(ids.float().reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4) / 10, ids), ids

    for round_, values in enumerate(([3, 1], [1, 5], [5, 3]), start=1):
        scoring.write_truth(tmp_path, 0, round_, *batch(values))
    whole = scoring.read_truth(tmp_path, [0], [1, 2, 3])
    assert whole.ids.tolist() == whole.labels.tolist() == [3, 1, 5]
    assert whole.groups.tolist() == [0, 0, 1]
    assert len(scoring.read_truth(tmp_path, [0], [2])) == 2


def test_the_truth_of_a_sum_may_have_a_client_that_drew_no_image(tmp_path: Path) -> None:
    from fedsim.protocol import Batch

    for client, count in enumerate((2, 0, 1)):
        ids = torch.arange(count)
        scoring.write_truth(tmp_path, client, 1, Batch(torch.zeros(count, 1, 4, 4), ids), ids)
    whole = scoring.read_truth(tmp_path, [0, 1, 2], [1])
    assert whole.ids.tolist() == [0, 1, 0]


@dataclass(frozen=True)
class Throng:
    """Answers with far more images than there are, each with an id and a label, none of which it was granted."""

    needs: ClassVar[frozenset[str]] = frozenset({"num_examples"})
    powers: ClassVar[frozenset[str]] = frozenset()

    def capture(self, seen: Observation) -> Iterator[Job]:
        yield Job((seen,))

    def attack(self, job: Job, device: torch.device, rng: torch.Generator) -> Reconstruction:
        ids = torch.arange(2000)
        return Reconstruction(torch.rand(2000, 1, 8, 8, generator=rng), 0 * ids, 0.0, 1, ids=ids)


def attack_with(experiment: Experiment, plugin: Any, path: Path) -> dict[str, Any]:
    entry = AdversaryEntry("x", Component("x", plugin), "server", (0,), (1,))
    (line,) = simulate(replace(experiment, adversaries=(entry,)), RunFolder.create(path), Screen()).attacks
    return line


def test_images_beyond_the_truth_win_nothing_by_their_ids(experiment: Experiment, tmp_path: Path) -> None:
    line = attack_with(experiment, Throng(), tmp_path / "run")
    stored = scoring.read_truth(tmp_path / "run" / "truth", (0,), (1,))
    assert (line["status"], line["images"], line["batch"]) == ("done", 4, 4)
    # Four labels count and not two thousand: all of them are 0.
    assert line["label_accuracy"] == (stored.labels == 0).double().mean()


@dataclass(frozen=True)
class Claims(Throng):
    """Says of one image that it is there, and of the others that they are of elsewhere."""

    def attack(self, job: Job, device: torch.device, rng: torch.Generator) -> Reconstruction:
        return Reconstruction(
            torch.rand(4, 1, 8, 8, generator=rng), None, 0.0, 1, ids=torch.tensor([0, 7001, 7002, 7003])
        )


def test_images_that_claim_to_be_of_elsewhere_do_not_count_as_scored(experiment: Experiment, tmp_path: Path) -> None:
    line = attack_with(experiment, Claims(), tmp_path / "run")
    assert (line["images"], line["batch"], len(line["per_image"]["psnr"])) == (1, 4, 1)


@dataclass(frozen=True)
class Fractions(Throng):
    def attack(self, job: Job, device: torch.device, rng: torch.Generator) -> Reconstruction:
        return Reconstruction(torch.rand(2, 1, 8, 8, generator=rng), None, 0.0, 1, ids=torch.tensor([0.0, 0.5]))


def test_ids_are_whole_numbers(experiment: Experiment, tmp_path: Path) -> None:
    line = attack_with(experiment, Fractions(), tmp_path / "run")
    assert line["status"] == "failed" and "whole numbers" in line["error"]


@dataclass(frozen=True)
class Named(Throng):
    names: tuple[str, ...] = ()

    def attack(self, job: Job, device: torch.device, rng: torch.Generator) -> Reconstruction:
        return Reconstruction(torch.zeros(1, 1, 8, 8), None, 0.0, 1)

    def combine(self, parts: Sequence[tuple[Job, Reconstruction]], device: torch.device, rng: torch.Generator) -> Any:
        return dict.fromkeys(self.names, parts[0][1])


@pytest.mark.parametrize(
    ("names", "word"), [((), "no answer"), (("../../../up",), "named an answer"), (("",), "named")]
)
def test_no_answer_and_a_name_that_is_none_are_failures(
    experiment: Experiment, tmp_path: Path, names: tuple[str, ...], word: str
) -> None:
    line = attack_with(experiment, Named(names), tmp_path / "run")
    assert line["status"] == "failed" and word in line["error"] and line["combined"]


def test_an_answer_that_lacks_rounds_says_so(experiment: Experiment, tmp_path: Path) -> None:
    outcome, _ = run(experiment, Means(fails=(2,)), tmp_path / "run")
    assert [(line["status"], line["notes"]) for line in outcome.attacks] == [
        ("partial", {"jobs that failed": 1}),
        ("partial", {"jobs that failed": 1}),
    ]
