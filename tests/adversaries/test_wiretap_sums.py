"""An adversary with `aggregate = true` is shown the sum of its targets' updates, and no single one."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import Message
from spying import Collector, Guesser, Kept, Silent, canary, liveliest, watch
from torch import Tensor, nn
from torch.func import functional_call

import fedsim.grids.flower_internals as flower
from fedsim import protocol
from fedsim.adversaries.base import Observation
from fedsim.adversaries.storage import observation_bytes
from fedsim.adversaries.wiretap import Wiretap, summed
from fedsim.clients.workbench import Workbench, workbench
from fedsim.experiment import AdversaryEntry, Component
from fedsim.grids.watched import client_of
from fedsim.runs import RunFolder
from fedsim.simulation import simulate

FACTS: dict[str, Any] = {"classes": 3, "algorithm": "fedsgd", "batch_size": 4, "granted": ["sizes", "update"]}


def seen_of(client: int, update: list[float], count: int, **facts: Any) -> Observation:
    tensors = {
        "model/w": torch.tensor([5.0, 6.0]),
        "buffers/bn.mean": torch.tensor([0.5]),
        "update/w": torch.tensor(update),
        "sent_buffers/bn.mean": torch.tensor([float(client)]),
        "known/labels": torch.tensor([client] * count),
        "known/mean/bn": torch.tensor([10.0 * client]),
    }
    own = {"num_examples": count, "num_steps": 1, "bytes_down": 100, "bytes_up": 10 + client}
    return Observation(2, client, "server", tensors, {**FACTS, **own, **facts})


def test_a_sum_by_hand() -> None:
    # Not in the order of the clients, which the sum restores.
    found = summed([seen_of(7, [9.0, 1.0], 1), seen_of(3, [1.0, 5.0], 3)])
    assert (found.round, found.vantage, found.facts["clients"]) == (2, "server", [3, 7])
    tensors = {name: value.tolist() for name, value in found.tensors.items()}
    assert tensors == {
        "model/w": [5.0, 6.0],
        "buffers/bn.mean": [0.5],
        "update/w": [3.0, 4.0],  # 3/4 of one and 1/4 of the other
        "sent_buffers/bn.mean": [4.0],
        "known/labels": [3, 3, 3, 7],
        "known/mean/bn": [40.0],
    }
    assert found.tensors["known/labels"].dtype == torch.int64
    assert found.tensors["update/w"].dtype == torch.float32
    counted = {"num_examples": 4, "num_steps": 1, "bytes_down": 200, "bytes_up": 30, "clients": [3, 7]}
    assert dict(found.facts) == {**FACTS, **counted}


def test_a_fact_that_the_clients_do_not_share_is_absent_and_steps_are_a_mean() -> None:
    few, many = (seen_of(c, [1.0, 1.0], n, batch_size=b, num_steps=s) for c, n, b, s in ((0, 1, 1, 2), (1, 3, 2, 6)))
    facts = summed([few, many]).facts
    assert "batch_size" not in facts
    assert facts["num_steps"] == 5  # 2/4 + 18/4


def test_the_sum_of_one_is_that_one() -> None:
    one = seen_of(4, [1.0, -2.5], 3)
    found = summed([one])
    assert all(torch.equal(found.tensors[name], value) for name, value in one.tensors.items())
    assert dict(found.facts) == {**one.facts, "clients": [4]}


@pytest.fixture
def uneven(small: Any) -> Any:
    """Clients 0 to 3 with batches of 4, but client 1 with one of 2."""
    groups = [{"members": [1], "batch_size": 2}]
    return lambda **sections: small(**{"clients": {"groups": groups}, **sections})


def test_the_sum_of_fedsgd_updates_is_the_gradient_of_all_images_as_one_batch(uneven: Any, tmp_path: Path) -> None:
    experiment = uneven(rounds=1)
    (seen,) = watch(
        experiment, tmp_path / "run", vantage="server", targets=(0, 1, 3), aggregate=True, knows=("labels",)
    )
    assert (seen.facts["num_examples"], seen.facts["clients"]) == (10, [0, 1, 3])
    place = workbench(replace(experiment, adversaries=()))
    batches = [place.replay(client, 1, {}, {}, statistics=False).batch for client in (0, 1, 3)]
    labels = torch.cat([batch.labels for batch in batches])
    assert torch.equal(seen.tensors["known/labels"], labels)
    images = place.federation.data.normalisation(torch.cat([batch.images for batch in batches]))
    parameters = {name: value.requires_grad_() for name, value in seen.part("model").items()}
    loss = torch.nn.functional.cross_entropy(functional_call(place.model, parameters, (images,)), labels)
    gradient = torch.autograd.grad(loss, list(parameters.values()))
    update = seen.part("update")
    assert list(update) == list(parameters)
    for mine, theirs in zip(gradient, update.values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_there_is_one_observation_a_round(small: Any, tmp_path: Path) -> None:
    seen = watch(small(rounds=3), tmp_path / "run", vantage="server", targets=(3, 1), rounds=(1, 3), aggregate=True)
    assert [(one.round, one.facts["clients"]) for one in seen] == [(1, [1, 3]), (3, [1, 3])]


class Listening(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, *words: Any) -> None:
        self.warnings.extend(words)


@pytest.mark.parametrize(
    ("dropped", "clients", "said"),
    [
        ({2}, [0, 1], "the sum of round 1 is of clients 0 and 1 without client 2 (not drawn, or dropped out)"),
        ({0, 2}, [1], "the sum of round 1 is of client 1 without clients 0 and 2"),
        ({0, 1, 2}, None, "there is no sum of clients 0 to 2 in round 1 to attack"),
    ],
)
def test_a_target_that_drops_out_is_left_out_of_the_sum_and_that_is_said(
    small: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dropped: set[int],
    clients: list[int] | None,
    said: str,
) -> None:
    honest = Workbench.train

    def train(self: Workbench, client: int, *rest: Any, **more: Any) -> Any:
        return 1 / 0 if client in dropped else honest(self, client, *rest, **more)

    monkeypatch.setattr(Workbench, "train", train)
    screen = Listening()
    entry = AdversaryEntry("spy", Component("guesser", Guesser()), "server", (0, 1, 2), (1,), aggregate=True)
    experiment = replace(small(rounds=1, runtime={"isolation": "none"}), adversaries=(entry,))
    outcome = simulate(experiment, RunFolder.create(tmp_path / "run"), screen)
    assert [line["clients"] for line in outcome.attacks] == ([clients] if clients else [])
    (warning,) = [words for words in screen.warnings if "spy" in words]
    assert said in warning


def test_the_sum_of_a_round_is_handed_over_when_the_next_begins(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts of all rounds at once may not fit into memory."""
    honest = Workbench.train

    def train(self: Workbench, client: int, round_: int, *rest: Any, **more: Any) -> Any:
        if round_ == 2:
            raise KeyboardInterrupt
        return honest(self, client, round_, *rest, **more)

    monkeypatch.setattr(Workbench, "train", train)
    kept = Kept()
    entry = AdversaryEntry("spy", Component("x", Collector(kept)), "server", (0, 1), (1, 2), aggregate=True)
    with pytest.raises(KeyboardInterrupt):
        simulate(replace(small(), adversaries=(entry,)), RunFolder.create(tmp_path / "run"), Silent())
    assert [one.round for one in kept] == [1]


# --- what leaks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiny:
    """A network with BatchNorm, small enough to look for every one of its tensors."""

    batchnorm: ClassVar[bool | None] = True

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(shape[0], 6, 3, stride=2), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(54, classes)
        )


KNOWLEDGE = [(), ("labels",), ("batch_statistics",), ("running_statistics",), ("defenses",)]


class Recorder:
    """Keeps what clients sent, and what they were sent, as it passes the wiretap."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: dict[int, dict[str, Tensor]] = {}
        self.broadcast = b""
        look = Wiretap.__call__

        def record(wiretap: Wiretap, message: Message) -> None:
            tensors = {
                f"{record}/{name}": value.clone()
                for record in message.content.array_records
                for name, value in flower.tensors_in(message.content, record).items()
            }
            if message.metadata.src_node_id == flower.SERVER_NODE:
                self.broadcast += b"".join(canary(value) for value in tensors.values())
            else:
                assert message.content[protocol.METRICS][protocol.NUM_EXAMPLES] == 4
                self.sent[client_of(message)] = tensors
            look(wiretap, message)

        monkeypatch.setattr(Wiretap, "__call__", record)

    def canaries(self, client: int) -> dict[str, bytes]:
        """16 bytes of every tensor that the client sent and that are not in what everybody was sent."""
        large = {name: value for name, value in self.sent[client].items() if value.numel() >= 4}
        found = {name: canary(liveliest(value)) for name, value in large.items()}
        return {name: data for name, data in found.items() if data not in self.broadcast and any(data)}


@pytest.mark.parametrize("policy", ["share_running", "share_batch", "local"])
def test_nothing_of_a_single_client_is_in_the_bytes_of_a_sum(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    experiment = small(
        rounds=1,
        clients={
            "count": 2,
            "batch_size": 4,
            "batchnorm": policy,
            "defenses": [{"name": "gradient_noise", "std": 0.1}],
        },
    )
    experiment = replace(experiment, model=Component("tiny", Tiny()))
    place = workbench(experiment)
    truths = [place.replay(client, 1, {}, {}, statistics=False).batch for client in (0, 1)]
    recorder = Recorder(monkeypatch)

    def spies(aggregate: bool) -> list[AdversaryEntry]:
        return [
            AdversaryEntry(
                f"{'sum' if aggregate else 'single'}-{number}",
                Component("collector", Collector(Kept())),
                "server",
                (0, 1),
                (1,),
                knows=knows,  # type: ignore[arg-type]
                aggregate=aggregate,
            )
            for number, knows in enumerate(KNOWLEDGE)
        ]

    sums, singles = spies(True), spies(False)
    simulate(replace(experiment, adversaries=(*sums, *singles)), RunFolder.create(tmp_path / "run"), Silent())
    hidden = {f"client {client}: {name}": data for client in (0, 1) for name, data in recorder.canaries(client).items()}
    kinds = {(name.split("/")[0], name[7]) for name in hidden}
    records = {protocol.UPDATE} | ({protocol.BUFFERS} if policy != "local" else set())
    assert kinds == {(f"client {client}: {record}", str(client)) for client in (0, 1) for record in records}
    assert len(hidden) == 2 * (6 + (2 if policy != "local" else 0)), "every tensor of both replies is looked for"
    for entry, twin in zip(sums, singles, strict=True):
        (seen,) = entry.plugin.settings.seen
        data = observation_bytes(seen)
        assert not [name for name, one in hidden.items() if one in data], entry.knows
        assert not [batch for batch in truths if canary(liveliest(batch.images)) in data]
        # What the clients privately computed and a grant shows: only means of it.
        for own in twin.plugin.settings.seen:
            private = {
                name: value for name, value in own.tensors.items() if name.startswith(("known/mean", "known/var"))
            }
            assert not [name for name, value in private.items() if canary(liveliest(value)) in data]
            assert own.facts["bytes_up"] < seen.facts["bytes_up"]
        assert all(canary(batch.labels) in data for batch in truths) == ("labels" in entry.knows)
        facts = json.loads(json.dumps(dict(seen.facts)))
        assert (facts["num_examples"], facts["clients"]) == (8, [0, 1])
        # The search itself works: whoever is shown single updates has every one of these bytes.
        whole = b"".join(observation_bytes(one) for one in twin.plugin.settings.seen)
        assert all(one in whole for one in hidden.values())
