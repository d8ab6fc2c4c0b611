"""Nothing but what its place shows and its threat model grants reaches a plugin: canaries are in every image, label,
update, statistic, key, share and seed of a run, and every byte that a plugin is handed, or that is stored for it, is
searched for all of them. Each is also found where it may be seen, so that the search is not blind.

`pytest -s` prints what was searched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from canaries import Canary
from flwr.app import Context
from leak_rules import Cell
from leaking import GAP, ITEMS, MODES, WITHOUT_MIXING, Federation, Played, cells, play, told

from fedsim.clients import sealing
from fedsim.experiment import Experiment
from fedsim.secagg.base import DroppedOut

EACH = ((), *((item,) for item in ITEMS), ITEMS)
TOTAL: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def summary() -> Iterator[None]:
    """The last line of the table."""
    print(f"\n{'':40}{'cells':>8}{'canaries':>12}{'bytes':>14}{'found':>8}{'leaks':>8}")
    yield
    row(
        f"all, in {TOTAL['runs']} runs",
        TOTAL["cells"],
        TOTAL["canaries"],
        TOTAL["bytes"],
        TOTAL["found"],
        TOTAL["leaks"],
    )


@pytest.fixture(params=list(MODES))
def mode(request: pytest.FixtureRequest) -> str:
    if request.param == "ckks":
        pytest.importorskip("tenseal")
    return str(request.param)


def row(title: str, *values: int) -> None:
    """A line of the table."""
    print(f"{title:40}" + "".join(f"{value:>{width},}" for value, width in zip(values, (8, 12, 14, 8, 8), strict=True)))


def judge(title: str, played: Played) -> dict[Cell, set[Canary]]:
    """Nothing leaked, nothing was missed, and nobody failed. Returns what was found in each cell."""
    out, leaked = {}, []
    for cell, leaks, missed, found in played.judged():
        leaked += [f"{cell.name}: {what}" for what in told(leaks)]
        assert not missed, f"the search is blind: {cell.name}: {told(missed)}"
        out[cell] = found
    seen = len(set().union(*out.values()))
    counts = {"cells": len(out), "canaries": len(played.canaries), "bytes": played.search.scanned, "found": seen}
    counts["leaks"] = len(leaked)
    row(title, *counts.values())
    TOTAL.update({"runs": 1, **counts})
    assert not leaked, leaked
    assert {line["status"] for line in played.outcome.attacks} <= {"done"}
    assert not [words for words in played.screen.warnings if "failed" in words]
    return out


def kinds(found: set[Canary]) -> set[str]:
    return {canary.kind for canary in found}


# --- the matrix -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True])
def test_every_place_with_every_knowledge(
    mode: str, tls: bool, federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch and running statistics stay with the clients here, images are mixed, and updates are noisy."""
    experiment = federation.experiment(mode, tls, "local", mix=True)
    wanted: Sequence[Cell] = cells(experiment, knowledge=EACH)
    if tls:  # it changes nothing for who stands at an end of the link
        wanted = [cell for cell in wanted if cell.vantage == "link" or len(cell.knows) != 1]
    found = judge(f"{mode}{' + TLS' if tls else ''}, local, mixup", play(experiment, wanted, tmp_path, monkeypatch))
    silent = next(cell for cell in wanted if cell.vantage == "link" and not cell.knows)
    assert bool(found[silent]) != tls, "with TLS a link shows no canary at all"
    every = set().union(*(kinds(one) for one in found.values()))
    assert every >= {"images", "hidden labels", "labels", "batch statistics", "running statistics", "mixing indices"}
    plain = {"off": {"update", "examples"}, "secagg+": {"masked update", "encrypted shares", "share of a seed"}}
    assert every >= plain.get(mode, set())


@pytest.mark.parametrize("policy", ["share_batch", "share_running"])
def test_statistics_and_local_steps(
    mode: str, policy: str, federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics are on the wire, or in the sum, by the policy; clients take steps of their own, on plain labels."""
    experiment = federation.experiment(mode, False, policy, algorithm="fedavg")
    known = ((), ("labels",), ("batch_statistics",), WITHOUT_MIXING)
    found = judge(
        f"{mode}, {policy}, fedavg", play(experiment, cells(experiment, knowledge=known), tmp_path, monkeypatch)
    )
    sent = policy.replace("share_batch", "batch statistics").replace("share_running", "running statistics")
    for cell, one in found.items():
        if not cell.knows:
            assert (sent in kinds(one)) == (mode == "off" and cell.vantage != "client")


def test_what_is_hidden_summed_or_of_another_round(
    mode: str, federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = federation.experiment(mode, False, "share_running", rounds=2)
    more = [
        {"hides": ("training_details",)},
        {"hides": ("num_examples",)},
        {"hides": ("global_model", "training_details", "update")},
        {"hides": ("masked_update", "encrypted_shares", "opened_shares")},
        {"rounds": (2,), "targets": (2,)},
    ]
    wanted = [cell for one in more for cell in cells(experiment, ("link", "server"), **one)]  # type: ignore[arg-type]
    if mode != "off":
        wanted += cells(experiment, ("server",), colluders=(2,), rounds=(1, 2))
        wanted += cells(experiment, ("server",), colluders=(2,), targets=(1,), knowledge=[("labels",)])
    title = f"{mode}, hiding, rounds, colluders"
    if mode == "off":
        # Of a sum whatever is granted has to be the same for all.
        alike = federation.experiment("ideal", False, "share_running", rounds=2)
        experiment = _without_mode(alike)
        wanted += cells(experiment, ("server",), aggregate=True, knowledge=[(), ("labels",), WITHOUT_MIXING])
        wanted += cells(experiment, ("server",), aggregate=True, targets=(1,))
    found = judge(title, play(experiment, wanted, tmp_path, monkeypatch))
    if mode != "off":
        helped = [one for cell, one in found.items() if cell.colluders]
        assert all({canary.client for canary in one if canary.kind == "update"} == {2} for one in helped)
    else:
        alone = [one for cell, one in found.items() if cell.aggregate and len(cell.targets) == 1]
        assert all("update" in kinds(one) for one in alone), "the sum of one is that one"


def _without_mode(experiment: Experiment) -> Experiment:
    from dataclasses import replace

    return replace(experiment, server=replace(experiment.server, secure_aggregation=None))


def test_who_may_alter_messages_and_derives_updates(
    mode: str, federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is handed to `alter_model`, `alter_request` and `derive` is searched as well."""
    experiment = federation.experiment(mode, False, "share_running")
    wanted = cells(experiment, ("server",), [(), ("labels",), WITHOUT_MIXING])
    powers = ("alter_model", "alter_requests")
    judge(f"{mode}, powers", play(experiment, wanted, tmp_path, monkeypatch, powers=powers))
    wanted += cells(experiment, ("server",), colluders=(2, 3)) if mode != "off" else []
    judge(f"{mode}, derivation", play(experiment, wanted, tmp_path, monkeypatch, derive=True))


@pytest.mark.parametrize("stage", ["shares", "update", "unmask"])
def test_a_client_that_drops_out(
    stage: str, federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a client whose vector is missing the shares of its key are opened, of all others those of their seeds."""

    def leaves(experiment: Experiment, client: int, round_: int, now: str, context: Context) -> None:
        if client == 2 and now == stage:
            raise DroppedOut("as the test has it")

    monkeypatch.setattr(sealing, "leave", leaves)
    experiment = federation.experiment("secagg+", False, "share_running")
    wanted = [*cells(experiment, knowledge=[(), ("labels",)]), *cells(experiment, ("server",), targets=(0, 1, 2))]
    found = judge(f"secagg+, one drops out at {stage}", play(experiment, wanted, tmp_path, monkeypatch))
    opened = {(one.kind, one.client) for one in set().union(*found.values()) if one.kind.startswith("share of")}
    seeds = {("share of a seed", client) for client in (0, 1, 3)}
    after = {"shares": set(), "update": {("share of a key", 2)}, "unmask": {("share of a seed", 2)}}
    assert opened == seeds | after[stage]


@pytest.mark.parametrize("policy", ["local", "share_running"])
def test_the_model_that_a_plugin_is_asked_about_before_round_0_shows_nothing_of_what_follows(
    policy: str, federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = federation.experiment("secagg+", True, policy, algorithm="fedavg", rounds=2)
    played = play(experiment, cells(experiment, ("link",)), tmp_path, monkeypatch)
    assert played.models
    found = played.search(GAP.join(played.models))
    assert not told(one for one in found if (one.kind, one.round) != ("model", 1))
