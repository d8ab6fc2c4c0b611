"""Only what the threat model grants reaches an adversary: canaries are planted everywhere else and searched for."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from spying import Collector, Kept, Silent, canary, liveliest, watch

from fedsim.adversaries.base import Job, Observation
from fedsim.adversaries.storage import JobStore, observation_bytes, observation_from
from fedsim.clients.workbench import workbench
from fedsim.errors import FedsimError
from fedsim.experiment import AdversaryEntry, Component, Experiment
from fedsim.runs import RunFolder
from fedsim.simulation import simulate


def secrets(experiment: Experiment) -> dict[str, bytes]:
    """Bytes that identify what client 0 has in round 1: 16 that stand side by side in its data or its raw gradient."""
    place = workbench(replace(experiment, adversaries=()))
    from fedsim.server.app import Rounds

    start = Rounds(experiment)
    trained, _ = place.train(0, 1, start.parameters, start.running, record=True)
    private = place.replay(0, 1, start.parameters, start.running, statistics=True)
    raw = next(iter(trained.update.tensors.values())).flatten()
    sent = place.perturb(trained.update, 0, 1, start.parameters, {})[0]
    out = {
        "global model": canary(liveliest(next(iter(start.parameters.values())))),
        "sent update": canary(liveliest(next(iter(sent.tensors.values())))),
        "images": canary(liveliest(private.batch.images)),
        "labels": canary(private.batch.labels[:4]),
        "raw update": canary(liveliest(raw)),
    }
    for kind in ("mean", "var"):
        values = [value for name, value in private.statistics.items() if name.endswith("." + kind)]
        if values:
            out[f"batch {kind}"] = canary(values[0][:4])
    return out


KNOWLEDGE = [
    (),
    ("labels",),
    ("batch_statistics",),
    ("running_statistics",),
    ("defenses",),
    ("labels", "batch_statistics"),
]
VANTAGES = [("link", False), ("link", True), ("server", False), ("server", True), ("client", False), ("client", True)]
POLICIES = ["share_running", "share_batch", "local"]


@pytest.mark.parametrize(("vantage", "policy"), list(itertools.product(VANTAGES, POLICIES)))
def test_nothing_but_what_is_granted_is_in_the_bytes_of_an_observation(
    small: Any, tmp_path: Path, vantage: tuple[str, bool], policy: str
) -> None:
    place, tls = vantage
    base = small(
        rounds=1,
        model={"name": "resnet18"},
        clients={
            "count": 2,
            "batch_size": 4,
            "batchnorm": policy,
            "defenses": [{"name": "gradient_noise", "std": 0.1}],
        },
        server={"tls": tls, "evaluate_every": 1},
    )
    hidden = secrets(base)
    assert len(set(hidden.values())) == len(hidden)
    entries = tuple(
        AdversaryEntry(
            id=f"spy-{number}",
            plugin=Component("collector", Collector(Kept())),
            vantage=place,  # type: ignore[arg-type]
            targets=(0,),
            rounds=(1,),
            knows=knows,  # type: ignore[arg-type]
            member=1 if place == "client" else None,
        )
        for number, knows in enumerate(KNOWLEDGE)
    )
    experiment = replace(base, adversaries=entries)
    simulate(experiment, RunFolder.create(tmp_path / "run"), Silent())
    for entry in entries:
        (seen,) = entry.plugin.settings.seen
        data = observation_bytes(seen)
        # Written out, not taken from the table that is under test.
        sees_messages = place == "server" or (place == "link" and not tls)
        granted = {"sent update"} if sees_messages else set()
        if sees_messages or place == "client":
            granted |= {"global model"}
        if place != "client":  # what a client adversary is told of itself, client 1, is no secret of client 0
            granted |= {"labels"} & set(entry.knows)
            if "batch_statistics" in entry.knows or (sees_messages and policy == "share_batch"):
                granted |= {"batch mean", "batch var"}
        found = {name for name, canary in hidden.items() if canary in data}
        assert found == granted, (entry.id, entry.knows)


def test_a_scan_would_find_a_leak(small: Any, tmp_path: Path) -> None:
    """The search itself works: what is granted is found by the same canaries."""
    experiment = small(rounds=1, clients={"count": 2, "batch_size": 4})
    hidden = secrets(experiment)
    (seen,) = watch(experiment, tmp_path / "run", knows=("labels",))
    data = observation_bytes(seen)
    assert hidden["labels"] in data
    assert hidden["sent update"] == hidden["raw update"]
    assert hidden["raw update"] in data, "without a defense the update on the wire is the raw one"
    assert hidden["images"] not in data


def test_only_targets_in_the_listed_rounds_are_seen(small: Any, tmp_path: Path) -> None:
    seen = watch(small(rounds=3), tmp_path / "run", targets=(1, 3), rounds=(1, 3))
    assert [(one.round, one.client) for one in seen] == [(1, 1), (1, 3), (3, 1), (3, 3)]


def test_an_observation_is_a_frozen_copy(small: Any, tmp_path: Path) -> None:
    seen = watch(small(rounds=2), tmp_path / "run", rounds=(1, 2))
    first, second = (next(iter(one.part("model").values())) for one in seen)
    assert not torch.equal(first, second), "the model of round 1 must not have moved with training"
    with pytest.raises(TypeError):
        seen[0].facts["classes"] = 3  # type: ignore[index]


def test_a_client_that_drops_out_shows_nothing_and_that_is_said(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsim.clients.workbench import Workbench

    monkeypatch.setattr(Workbench, "train", lambda *a, **k: 1 / 0)
    warnings: list[str] = []

    class Listening(Silent):
        def warn(self, *words: Any) -> None:
            warnings.extend(words)

    made = AdversaryEntry(
        id="spy", plugin=Component("collector", Collector(Kept())), vantage="link", targets=(0,), rounds=(1,)
    )
    outcome = simulate(replace(small(rounds=1), adversaries=(made,)), RunFolder.create(tmp_path / "r"), Listening())
    assert any("no capture of client 0 in round 1" in words for words in warnings)
    assert outcome.warnings == warnings


def observation() -> Observation:
    return Observation(2, 1, "link", {"update/b": torch.randn(3), "update/a": torch.arange(4)}, {"classes": 3})


def test_observations_survive_storage_in_the_order_of_the_model() -> None:
    seen = observation()
    data = observation_bytes(seen)
    back = observation_from(data)
    assert (back.round, back.client, back.vantage, dict(back.facts)) == (2, 1, "link", {"classes": 3})
    assert list(back.part("update")) == ["b", "a"]
    assert all(torch.equal(seen.tensors[name], value) for name, value in back.tensors.items())
    assert observation_bytes(back) == data


def test_jobs_are_addressed_by_their_content(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    store = JobStore(folder.captures, folder.jobs)
    seen = observation()
    one = store.put(Job((seen,)), {"name": "x", "tv": 0.1}, "x")
    assert store.put(Job((seen,)), {"name": "x", "tv": 0.1}, "x") == one
    assert store.put(Job((seen,)), {"name": "x", "tv": 0.2}, "x") != one
    assert len(store.captured()) == 1, "both jobs share the capture"
    assert observation_bytes(store.get(one).observations[0]) == observation_bytes(seen)


def test_a_damaged_capture_is_found_by_its_hash(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    store = JobStore(folder.captures, folder.jobs)
    address = store.put(Job((observation(),)), {}, "x")
    (capture,) = folder.captures.iterdir()
    data = bytearray(capture.read_bytes())
    data[-1] ^= 1
    capture.write_bytes(data)
    with pytest.raises(FedsimError, match="does not match its name"):
        store.get(address)
