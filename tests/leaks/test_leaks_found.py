"""The search for canaries turns red when one cell of the table is widened, or one wall has a hole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from canaries import Search, numbers, reachable, sequence
from leaking import Federation, cells, play
from planting import everywhere

from fedsim.adversaries import sums, threat, wiretap
from fedsim.adversaries.base import Observation
from fedsim.adversaries.storage import JobStore
from fedsim.clients.workbench import Workbench
from fedsim.experiment import AdversaryEntry
from fedsim.secagg import keys, masks
from fedsim.witness import Witness

Mutate = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutation:
    """What is changed, where it is looked at from, and which kinds of canaries are then found."""

    title: str
    mutate: Mutate
    finds: set[str]
    mode: str = "off"
    tls: bool = False
    vantage: str = "link"
    cell: Mapping[str, Any] | None = None
    policy: str = "share_running"


def widened(vantage: str, tls: bool, mode: str, *more: str) -> Mutate:
    """One cell of the table shows more."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        assert not set(more) & threat.SHOWS[vantage, tls, mode], "it would change nothing"
        patch.setitem(threat.SHOWS, (vantage, tls, mode), threat.SHOWS[vantage, tls, mode] | set(more))

    return mutate


def granted(*items: str) -> Mutate:
    """Every adversary knows more than its file says."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        view = threat.view
        patch.setattr(threat, "view", lambda *a: replace(one := view(*a), knows=one.knows | set(items)))

    return mutate


def witnessed(change: Callable[..., Any]) -> Mutate:
    """The witness answers otherwise: change(witness, client, round, item, request, answer of the right one)."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        right = Witness.__call__

        def answer(one: Witness, client: int, round_: int, item: str, request: Any) -> Any:
            def truly(whom: int = client, what: str = item) -> Any:
                return right(one, whom, round_, what, request)

            return change(one, client, item, truly)

        patch.setattr(Witness, "__call__", answer)

    return mutate


def seals(patch: pytest.MonkeyPatch) -> None:
    """Under secure aggregation the wiretap hands on each update besides, as if there were no sum."""
    sealed = wiretap.Wiretap._sealed

    def more(one: Any, entry: AdversaryEntry, round_: int, client: int, heard: Any) -> Observation:
        seen = sealed(one, entry, round_, client, heard)
        return replace(seen, tensors={**seen.tensors, **one._known(client, round_, "colluders", heard)})

    patch.setattr(wiretap.Wiretap, "_sealed", more)


def one_for_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(wiretap, "summed", lambda parts: sums.summed(parts[:1]))


def unmasked(patch: pytest.MonkeyPatch) -> None:
    everywhere(patch, masks.add_mask, lambda vector, seed, sign: None)


def unencrypted(patch: pytest.MonkeyPatch) -> None:
    everywhere(patch, keys.encrypt, lambda key, plaintext, header: bytes(keys.NONCE) + plaintext + bytes(keys.TAG))
    everywhere(patch, keys.decrypt, lambda key, sealed, header, what="": sealed[keys.NONCE : -keys.TAG])


def talkative(patch: pytest.MonkeyPatch) -> None:
    """What is handed over is right, but what is stored for the attack has labels beside it."""
    put = JobStore.put

    def more(store: JobStore, job: Any, plugin: Mapping[str, Any], adversary: str) -> str:
        (seen,) = job.observations
        noted = replace(job, notes={"labels": SECRETS[seen.client].tolist()})
        return put(store, noted, plugin, adversary)

    patch.setattr(JobStore, "put", more)
    replay = Workbench.replay

    def replays(place: Workbench, client: int, *args: Any, **kwargs: Any) -> Any:
        out = replay(place, client, *args, **kwargs)
        SECRETS[client] = out.batch.labels
        return out

    patch.setattr(Workbench, "replay", replays)


SECRETS: dict[int, torch.Tensor] = {}

MUTATIONS = [
    Mutation("TLS hides no update", widened("link", True, "off", "update"), {"update"}, tls=True),
    Mutation("TLS hides no model", widened("link", True, "ideal", "global_model"), {"model"}, "ideal", True),
    Mutation(
        "TLS hides no mask", widened("link", True, "secagg+", "masked_update"), {"masked update"}, "secagg+", True
    ),
    Mutation("TLS hides no count", widened("link", True, "off", "num_examples"), {"examples"}, tls=True),
    Mutation("ideal, link", widened("link", False, "ideal", "masked_update"), {"ring vector"}, "ideal"),
    Mutation(
        "ideal, server", widened("server", False, "ideal", "masked_update"), {"ring vector"}, "ideal", vantage="server"
    ),
    Mutation(
        "a link sees what is opened to the server",
        widened("link", False, "secagg+", "opened_shares"),
        {"share of a seed"},
        "secagg+",
    ),
    Mutation("a client is shown updates", widened("client", False, "off", "update"), {"update"}, vantage="client"),
    Mutation("labels for everybody", granted("labels"), {"labels"}, vantage="server"),
    Mutation("labels for everybody, of a sum", granted("labels"), {"labels"}, "secagg+", vantage="server"),
    Mutation(
        "statistics for everybody",
        granted("batch_statistics", "running_statistics"),
        {"batch statistics", "running statistics"},
        "secagg+",
        policy="local",
    ),
    Mutation("defenses for everybody", granted("defenses"), {"defenses"}),
    Mutation("own data for everybody", granted("own_data"), {"images", "labels"}),
    Mutation(
        "data of other clients",
        witnessed(lambda one, client, item, truly: truly(0) if item == "own_data" else truly()),
        {"images", "labels"},
        vantage="client",
    ),
    Mutation(
        "a witness that says more than it is asked",
        witnessed(lambda one, client, item, truly: {**truly(), **truly(client, "own_data")}),
        {"images"},
        vantage="server",
        cell={"knows": ("batch_statistics",)},
    ),
    Mutation(
        "colluders that are none",
        witnessed(lambda one, client, item, truly: truly(0) if item == "colluders" else truly()),
        {"update"},
        "secagg+",
        vantage="server",
        cell={"colluders": (2,)},
    ),
    Mutation("no sum, secagg+", seals, {"update"}, "secagg+", vantage="server"),
    Mutation("no sum, ideal", seals, {"update"}, "ideal", vantage="server"),
    Mutation("the sum of one", one_for_all, {"update", "examples"}, vantage="server", cell={"aggregate": True}),
    Mutation("no masks", unmasked, {"ring vector"}, "secagg+"),
    Mutation("shares in plain", unencrypted, {"share of a key", "share of a seed"}, "secagg+"),
    Mutation("a job that says more than was seen", talkative, {"labels"}),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[one.title for one in MUTATIONS])
def test_a_hole_in_a_wall_is_found(
    mutation: Mutation, federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = federation.experiment(mutation.mode, mutation.tls, mutation.policy)
    if (mutation.cell or {}).get("aggregate"):
        alike = federation.experiment("ideal", mutation.tls, mutation.policy)
        experiment = replace(alike, server=replace(alike.server, secure_aggregation=None))
    wanted = [replace(one, **(mutation.cell or {})) for one in cells(experiment, (mutation.vantage,))]
    mutation.mutate(monkeypatch)
    ((_, leaks, _, _),) = play(experiment, wanted, tmp_path, monkeypatch).judged()
    assert {canary.kind for canary in leaks} >= mutation.finds


# --- the search itself ----------------------------------------------------------------------------------------------


def test_a_canary_is_found_at_any_place_and_nowhere_else() -> None:
    rng = torch.Generator().manual_seed(2)
    value, labels = torch.randn(9, generator=rng), torch.randint(10, (16,), generator=rng)
    canaries = [*numbers("update", 0, 1, value), *sequence("labels", 0, 1, labels)]
    search, noise = Search(canaries), bytes(torch.randint(256, (5000,), generator=rng, dtype=torch.uint8).tolist())
    assert len({one.data for one in canaries}) == len(canaries) == 10
    assert not search(noise) and not search(b"") and not search(bytes(100))
    for canary in canaries:
        for place in (0, 1, 2, 3, 777, 5000):
            assert search(noise[:place] + canary.data + noise[place:]) == {canary}
            assert search(noise[:place] + canary.data[:-1] + b"\xab" + noise[place:]) == set()
    assert search(b"".join(one.data for one in canaries)) == set(canaries)


def test_what_hangs_on_an_observation_is_reached() -> None:
    whole = torch.randn(50)
    search = Search(numbers("images", 0, 1, whole))
    seen = Observation(1, 0, "link", {"update/w": whole[:1]}, {"classes": 3})
    assert search(b"".join(reachable(seen))), "a part of a tensor has all of its memory behind it"
    assert not search(b"".join(reachable(replace(seen, tensors={"update/w": whole[:1].clone()}))))
    held = torch.zeros(2, requires_grad=True)
    held.grad = whole[:2]
    assert search(b"".join(reachable(held)))
    with pytest.raises(AssertionError, match="hangs on"):
        list(reachable((held * 2,)))
    with pytest.raises(AssertionError, match="hung on"):
        object.__setattr__(seen, "more", whole)
        list(reachable(seen))
    with pytest.raises(AssertionError, match="was handed over"):
        list(reachable({"model": Workbench}))
