"""The experiments on secure aggregation that ship: each with the outcome that it is there to show.

They are run as they are, but for fewer steps of the attacks.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from fedsim.adversaries import threat
from fedsim.experiment import Experiment
from fedsim.experiment_file import read
from fedsim.runs import RunFolder, read_lines
from fedsim.simulation import Outcome, simulate

FLOAT32 = 2.0**-25
"""Half a unit in the last place of a coordinate below 1."""


class Silent:
    def rounds(self, *_: Any) -> None: ...
    def attack(self, *_: Any) -> None: ...
    def warn(self, *_: Any) -> None: ...


def experiment(name: str, *changes: str) -> Experiment:
    # No network for a score, and no process more: neither is what these experiments are about.
    return read(name, ["scores.lpips=off", "runtime.isolation=none", *changes], [threat.check])


def run(made: Experiment, folder: Path) -> tuple[Outcome, list[dict[str, Any]]]:
    """The outcome, and the lines on derived updates."""
    place = RunFolder.create(folder)
    outcome = simulate(made, place, Silent())
    assert all(line["status"] == "done" for line in outcome.attacks)
    lines = read_lines(place.derived) if place.derived.exists() else []
    derived = [line for line in lines if not line.get("nothing")]
    # Of every target of a derivation it is said that there is an update, or that there is none.
    told = {(line["adversary"], line["client"]) for line in lines}
    assert told == {(entry.id, client) for entry in made.adversaries if entry.derive for client in entry.targets}
    return outcome, derived


def notes(outcome: Outcome) -> list[str]:
    """What derivations say, each with its adversary in front."""
    return [f"{note['adversary']}: {note['text']}" for note in outcome.facts.get("notes", [])]


def exact(line: dict[str, Any]) -> bool:
    """Whether a derived update is the true one within the rounding of the integers, and that to float32."""
    return bool(line["largest_error"] <= line["error_bound"] + FLOAT32)


def test_all_but_one_colluder_recover_the_last_update_and_all_but_two_nothing(tmp_path: Path) -> None:
    outcome, derived = run(experiment("secagg-collusion"), tmp_path / "run")
    (line,) = derived
    assert (line["adversary"], line["client"]) == ("all-but-one", 4)
    assert exact(line)
    scores = {one["adversary"]: one for one in outcome.attacks}
    assert set(scores) == {"alone", "all-but-one"}
    assert scores["all-but-one"]["ssim"] > 0.9
    assert scores["alone"]["ssim"] < scores["all-but-one"]["ssim"] - 0.1, "the sum of all says less"
    said = "clients 3 and 4 are left besides the colluders: only their sum is known"
    assert [words for words in notes(outcome) if said in words and "all-but-two" in words]


@pytest.mark.parametrize(("rounds", "clients"), [(1, []), (2, [1]), (7, [1, 4]), (8, [0, 1, 4])])
def test_differencing_recovers_whom_the_rounds_determine_and_not_before(
    rounds: int, clients: list[int], tmp_path: Path
) -> None:
    made = experiment(
        "secagg-differencing", f"rounds={rounds}", *(["adversaries.0.iterations=1"] if rounds < 8 else [])
    )
    outcome, derived = run(made, tmp_path / "run")
    assert [line["client"] for line in derived] == clients
    assert all(exact(line) for line in derived)
    if rounds == 8:
        scores = {one["client"]: one["ssim"] for one in outcome.attacks}
        assert scores[0] > 0.5 and scores[0] == max(scores.values())
        said = "not determined: clients 2, 3 and 5 always took part together"
        assert any(said in words for words in notes(outcome))


def test_inconsistent_models_give_the_target_away_under_the_ideal_functionality(tmp_path: Path) -> None:
    outcome, (line,) = run(experiment("secagg-inconsistent-models"), tmp_path / "run")
    (attack,) = outcome.attacks
    assert (line["client"], attack["client"]) == (0, 0)
    # Five times the bound of the mean: the sum is scaled by clients over target.
    assert line["largest_error"] <= 5 * (line["error_bound"] + FLOAT32)
    assert line["cosine"] > 0.999999
    assert attack["ssim"] > 0.95
    assert not outcome.rounds[1].skipped


def test_inconsistent_models_close_the_round_where_masks_depend_on_the_model(tmp_path: Path) -> None:
    made = experiment("secagg-inconsistent-models", "server.secure_aggregation=secagg+")
    outcome, derived = run(made, tmp_path / "run")
    assert (outcome.attacks, derived) == ([], [])
    before, after = outcome.rounds
    assert after.skipped and "masks did not cancel" in after.skipped
    assert after.test_loss == before.test_loss, "the model is as it was"
    assert any("no sum was released in any round" in words for words in notes(outcome))


def test_a_malicious_server_is_refused_by_name_or_learns_nothing(tmp_path: Path) -> None:
    outcome, derived = run(experiment("secagg-malicious-server"), tmp_path / "run")
    assert (outcome.attacks, derived) == ([], [])
    _, both, fake, split, isolated, honest = outcome.rounds
    gone = "it is told that it dropped out, but it is being asked"

    def refused(record: Any) -> dict[int, str]:
        """By client, what it said."""
        late = {int(client): words for client, words in (record.secure.get("unopened") or {}).items()}
        assert all(f"client {client} refuses in round {record.round}" in words for client, words in late.items())
        return {client: words.partition(f"round {record.round}: ")[2] for client, words in late.items()}

    assert refused(both) == dict.fromkeys(range(6), "it is asked for both shares of client 2")
    assert refused(fake) == {2: gone}
    assert refused(split) == {}
    others = refused(isolated)
    assert others.pop(2).startswith("too few survivors: 1, and 4 are needed")
    assert others == dict.fromkeys((0, 1, 3, 4, 5), gone)
    for record in (both, fake, split, isolated):
        assert record.skipped and "secret are left, and 4 are needed" in record.skipped
        assert record.test_loss == outcome.rounds[0].test_loss
    assert not honest.skipped and honest.test_loss != outcome.rounds[0].test_loss
    assert sum("gives no single update" in words for words in notes(outcome)) == 4


def test_an_eavesdropper_ends_where_it_began_and_without_masks_it_has_the_image(tmp_path: Path) -> None:
    made = experiment("secagg-eavesdropper", "adversaries.0.iterations=120")
    outcome, derived = run(made, tmp_path / "run")
    assert len(outcome.attacks) == len(derived) == 8
    gains = [one["ssim"] - one["ssim_before"] for one in outcome.attacks]
    # No better than its own random first guess, as far as eight clients can tell.
    assert mean(gains) < 3 * stdev(gains) / len(gains) ** 0.5
    assert all(abs(line["cosine"]) < 0.1 for line in derived), "the vector does not point the update's way"
    (entry,) = made.adversaries
    plain = replace(
        made, server=replace(made.server, secure_aggregation=None), adversaries=(replace(entry, derive=None),)
    )
    outcome, _ = run(plain, tmp_path / "plain")
    assert mean(one["ssim"] for one in outcome.attacks) > 0.95


@pytest.mark.parametrize("mode", ["ideal", "secagg+"])
def test_one_survivor_is_no_sum(tmp_path: Path, mode: str) -> None:
    outcome, _ = run(
        experiment("secagg-one-survivor", "adversaries.0.iterations=5", f"server.secure_aggregation={mode}"),
        tmp_path / "run",
    )
    opened = [record.round for record in outcome.rounds if record.round and not record.skipped]
    if mode == "ideal":  # by the seed: which of them are left, and when
        assert [len(record.clients) for record in outcome.rounds[1:]] == [1, 1, 2, 2, 0, 4]
        assert opened == [6]
    assert len(opened) < 6
    assert {line["round"] for line in outcome.attacks} == set(opened), "a closed round shows nothing to attack"
    for record in outcome.rounds[1:]:
        assert len(record.clients) >= 3 or (record.skipped or "").endswith("the model stays as it was")


def test_the_more_clients_are_in_a_sum_the_less_is_recovered_of_each(tmp_path: Path) -> None:
    """The sweep `secagg/sums` on smaller images; both halves of the comparison, a seed each for three draws."""
    found: dict[str, float] = {}
    for clients in (2, 4, 8):
        for name, changes in (
            ("sum", {"count": clients, "batch": 8, "mode": '{ name = "secagg+", min_survivors = 2 }'}),
            ("batch", {"count": 1, "batch": 8 * clients, "mode": "off"}),
        ):
            made = experiment(
                "secagg-one-survivor",
                "rounds=3",
                "clients.dropout=0",
                f"clients.count={changes['count']}",
                f"clients.batch_size={changes['batch']}",
                f"server.secure_aggregation={changes['mode']}",
                "server.learning_rate=0",
                "server.evaluate_every=0",
                "model.hidden=[32]",
            )
            outcome, _ = run(made, tmp_path / f"{name}-{clients}")
            assert all(line["batch"] == 8 * clients for line in outcome.attacks)
            found[f"{name}-{clients}"] = mean(line["ssim"] for line in outcome.attacks)
    assert found["sum-2"] > found["sum-4"] + 0.02 > found["sum-8"] + 0.1, found
    for clients in (2, 4, 8):  # no worse for the attacker than one client's batch, and no better
        assert abs(found[f"sum-{clients}"] - found[f"batch-{clients}"]) < 0.12, found
