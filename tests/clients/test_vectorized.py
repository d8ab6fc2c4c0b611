from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor, nn

import fedsim.grids.flower_internals as flower
from fedsim import batchnorm
from fedsim.clients import stacked, training
from fedsim.clients.app import client_app
from fedsim.clients.vectorized import Vectorized, ahead_of
from fedsim.clients.workbench import Workbench
from fedsim.experiment import Experiment
from fedsim.grids.inline import InlineGrid
from fedsim.protocol import Batch

CLOSE = {"rtol": 1e-4, "atol": 1e-6}
"""float32 added up in another order: four of its digits stay, and what is left of a difference of weights."""


def ready(
    experiment: Experiment, *, clock: Callable[[], float] | None = None
) -> tuple[Workbench, Vectorized, list[str]]:
    said: list[str] = []
    place = Workbench(experiment)
    made = Vectorized(place, said.append, **({"clock": clock} if clock else {}))  # type: ignore[arg-type]
    place.ahead = made
    return place, made, said


def requests(place: Workbench, round_: int = 1) -> tuple[list[Message], dict[str, Tensor], dict[str, Tensor]]:
    """A round's train requests to all clients; the broadcast parameters and statistics as a client reads them."""
    flower.take_identity(1)
    record = flower.to_record({name: value.detach().cpu().clone() for name, value in place.model.named_parameters()})
    content = {"arrays": record, "config": ConfigRecord({"server-round": round_})}
    statistics = batchnorm.broadcast(place.experiment.clients.batchnorm, place.initial_statistics)
    if statistics:
        content["buffers"] = flower.to_record(statistics)
    messages = [
        Message(RecordDict(content), dst_node_id=client + 1, message_type="train", group_id=str(round_))
        for client in range(place.experiment.clients.count)
    ]
    sent = messages[0].content
    return messages, flower.tensors_in(sent, "arrays"), flower.tensors_in(sent, "buffers")


def compared(experiment: Experiment) -> int:
    """Each client's round both ways; how many were computed together."""
    place, made, _ = ready(experiment)
    messages, parameters, buffers = requests(place)
    made(messages)
    together = 0
    for client in range(experiment.clients.count):
        found = made.take(client, 1, parameters, buffers)
        if found is None:
            continue
        together += 1
        taken, examples = place.train(client, 1, parameters, buffers)
        assert taken is found
        place.ahead = None
        alone, same = place.train(client, 1, parameters, buffers)
        place.ahead = made
        assert examples == same
        assert found.steps == alone.steps
        assert found.loss == pytest.approx(alone.loss, rel=1e-5)
        assert list(found.update.tensors) == list(alone.update.tensors)
        for name, value in alone.update.tensors.items():
            torch.testing.assert_close(found.update.tensors[name], value, **CLOSE)  # type: ignore[arg-type]
            assert float(value.abs().max()) > 0
    return together


CNN = {"name": "lenet"}
ON = {"vectorized": "on", "device": "cpu"}


@pytest.mark.parametrize("batches", ["random", "epochs"])
@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [16]}, CNN])
def test_fedsgd_is_that_of_one_by_one(small: Any, model: dict[str, Any], batches: str) -> None:
    assert compared(small(runtime=ON, model=model, clients={"batches": batches})) == 4


@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [16]}, CNN])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.1)])
def test_fedavg_is_that_of_one_by_one(small: Any, model: dict[str, Any], momentum: float, weight_decay: float) -> None:
    clients = {"algorithm": "fedavg", "local_steps": 3, "momentum": momentum, "weight_decay": weight_decay}
    assert compared(small(runtime=ON, model=model, clients=clients)) == 4


def test_ragged_batches_and_unequal_numbers_of_steps(small: Any) -> None:
    data = {"name": "digits", "partition": {"kind": "dirichlet", "alpha": 0.3}}
    experiment = small(
        runtime=ON, data=data, clients={"algorithm": "fedavg", "batch_size": 100, "local_epochs": 2, "momentum": 0.5}
    )
    sizes = [len(share) for share in Workbench(experiment).federation.shares]
    assert len({-(-size // 100) for size in sizes}) > 1
    assert compared(experiment) == 4


def test_groups_with_settings_of_their_own_are_computed_apart(small: Any) -> None:
    groups = [
        {"members": [1, 3], "learning_rate": 0.3, "momentum": 0.9, "local_epochs": 1, "batch_size": 50},
        {"members": [4], "weight_decay": 0.2},
    ]
    experiment = small(runtime=ON, clients={"count": 6, "algorithm": "fedavg", "batch_size": 64, "groups": groups})
    assert compared(experiment) == 5  # client 4 has no companion


def test_encoded_batches(small: Any) -> None:
    assert compared(small(runtime=ON, clients={"defenses": [{"name": "mixup"}], "batch_size": 8})) == 4


def test_frozen_batchnorm(small: Any) -> None:
    clients = {"batchnorm": "freeze", "algorithm": "fedavg", "local_steps": 2}
    assert compared(small(runtime=ON, model={"name": "resnet18"}, clients={**clients, "count": 2})) == 2


def test_a_chunk_at_a_time(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked, "at_once", lambda *_: 2)
    place, made, _ = ready(small(runtime=ON))
    messages, parameters, buffers = requests(place)
    made(messages)
    sizes: list[int] = []
    train = stacked.train
    monkeypatch.setattr(stacked, "train", lambda *all_: sizes.append(len(all_[2])) or train(*all_))
    first = [made.take(client, 1, parameters, buffers) for client in range(4)]
    assert sizes == [2, 2]
    again = made.take(0, 1, parameters, buffers)  # made anew, as client 2's computation has taken its place
    assert sizes == [2, 2, 2]
    assert again is not None and first[0] is not None and again is not first[0]
    for name, value in first[0].update.tensors.items():
        assert torch.equal(again.update.tensors[name], value)


def test_the_room_of_a_client_is_reckoned_from_its_model_and_images(small: Any) -> None:
    place = Workbench(small(runtime=ON, model=CNN))
    few = next(place.normalised(0, 1, [torch.arange(4)]))
    many = next(place.normalised(0, 1, [torch.arange(64)]))
    assert 1 <= stacked.at_once(place.body, many) < stacked.at_once(place.body, few)
    assert stacked.at_once(place.body, many, 100) < stacked.at_once(place.body, many)


def test_an_altered_model_another_round_and_a_recording_are_trained_by_itself(small: Any) -> None:
    place, made, _ = ready(small(runtime=ON))
    messages, parameters, buffers = requests(place)
    made(messages)
    altered = {name: value.clone() for name, value in parameters.items()}
    assert made.take(0, 1, altered, buffers) is None
    assert made.take(0, 2, parameters, buffers) is None
    assert made.take(0, 1, parameters, buffers) is not None
    made([Message(RecordDict(), dst_node_id=1, message_type="query.share", group_id="1")])
    assert made.take(0, 1, parameters, buffers) is not None
    made(requests(place, round_=2)[0])
    assert made.take(0, 1, parameters, buffers) is None  # forgotten


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": {"name": "resnet18"}, "clients": {"batchnorm": "local"}}, "keep statistics of every batch"),
        ({"model": {"name": "mlp", "hidden": [16], "bottleneck": 8}}, "draws noise"),
    ],
)
def test_why_a_model_is_trained_one_by_one(small: Any, changes: dict[str, Any], reason: str) -> None:
    place, made, said = ready(small(runtime=ON, **changes))
    for round_ in (1, 2):
        messages, parameters, buffers = requests(place, round_)
        made(messages)
        assert made.take(0, round_, parameters, buffers) is None
    assert made.decision is not None and not made.decision.vectorized
    assert reason in made.decision.reason
    assert len(said) == 1 and reason in said[0]


def test_clients_whose_defense_makes_the_gradients_are_left_out(small: Any) -> None:
    groups = [{"members": [2], "batch_size": 4, "defenses": [{"name": "dp_sgd"}]}]
    place, made, said = ready(small(runtime=ON, clients={"groups": groups}))
    messages, parameters, buffers = requests(place)
    made(messages)
    assert [made.take(client, 1, parameters, buffers) is None for client in range(4)] == [False, False, True, False]
    assert len(said) == 1 and "makes their gradients" in said[0]


class Coupled(nn.Module):
    """A model in which the images of a batch are not independent, so that blank ones matter."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return self.last(flat - flat.mean(0))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3)), "RuntimeError"),
        (Coupled(), "others when several clients are computed together"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), None),
    ],
)
def test_a_step_is_tried_before(model: nn.Module, reason: str | None) -> None:
    body = training.Body(model)
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    batch = Batch(torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1]))
    found = stacked.objection(body, parameters, batch)
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_a_parameter_that_plays_no_part_stays(small: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    model.idle = nn.Parameter(torch.ones(2))
    body = training.Body(model)
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    settings = replace(small().clients, momentum=0.5)
    batches = [Batch(torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2])) for _ in range(2)]
    trainees = [stacked.Trainee(iter(batches), [3, 3]) for _ in range(2)]
    for done in stacked.train(body, parameters, trainees, settings, "fedavg"):
        assert torch.equal(done.update.tensors["idle"], torch.zeros(2))


def ticking(*durations: float) -> Callable[[], float]:
    """A clock by which the first thing that is timed takes the first duration, and so on."""

    def readings() -> Iterator[float]:
        for at, duration in enumerate(durations):
            yield 100.0 * at
            yield 100.0 * at + duration

    values = readings()
    return lambda: next(values)


@pytest.mark.parametrize(("together", "alone", "used"), [(4.0, 8.0, True), (8.0, 4.0, False)])
def test_auto_goes_by_the_clock_once(small: Any, together: float, alone: float, used: bool) -> None:
    experiment = small(runtime={"vectorized": "auto", "device": "cpu"})
    place, made, said = ready(experiment, clock=ticking(together, alone))
    for round_ in (1, 2):  # a second trial would run out of readings
        messages, parameters, buffers = requests(place, round_)
        made(messages)
        assert (made.take(1, round_, parameters, buffers) is not None) is used
    assert made.decision is not None
    assert made.decision.as_json() == {
        "used": used,
        "reason": made.decision.reason,
        "seconds_one_by_one": alone / 4,
        "seconds_together": together / 4,
    }
    assert not said


@pytest.mark.parametrize("decided", [True, False])
def test_a_run_that_goes_on_keeps_to_its_decision(small: Any, decided: bool) -> None:
    place = Workbench(small(runtime={"vectorized": "auto", "device": "cpu"}))
    made = Vectorized(place, print, decided=decided, clock=lambda: 1 / 0)
    messages, parameters, buffers = requests(place)
    made(messages)
    assert (made.take(1, 1, parameters, buffers) is not None) is decided


def test_a_computation_that_does_not_fit_is_given_up_and_said(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place, made, said = ready(small(runtime=ON))
    messages, parameters, buffers = requests(place)
    made(messages)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(stacked, "train", fail)
    assert made.take(0, 1, parameters, buffers) is None
    assert made.take(1, 1, parameters, buffers) is None
    assert len(said) == 1 and "no room for 4 clients" in said[0]


def test_whole_rounds_end_with_nearly_the_same_model(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.app import Context

    from fedsim.server.app import server_app

    sizes: list[int] = []
    train = stacked.train
    monkeypatch.setattr(stacked, "train", lambda *all_: sizes.append(len(all_[2])) or train(*all_))
    finals = []
    for vectorized in ("off", "on"):
        clients = {"algorithm": "fedavg", "batch_size": 64, "per_round": 3}
        experiment = small(runtime={"vectorized": vectorized, "device": "cpu"}, rounds=3, clients=clients)
        ahead = ahead_of(experiment, print)
        assert (ahead is None) == (vectorized == "off")
        grid = InlineGrid(client_app(experiment), experiment.clients.count, ahead=ahead)
        context = Context(1, 0, {}, RecordDict(), {})
        server_app(experiment, lambda record: None)(grid, context)
        finals.append(flower.tensors_in(context.state, "arrays"))
        if ahead is not None:
            assert ahead.decision is not None and ahead.decision.vectorized
    for (name, value), other in itertools.zip_longest(finals[0].items(), finals[1].values()):
        torch.testing.assert_close(other, value, msg=name, **CLOSE)  # type: ignore[arg-type]
    assert sizes == [3, 3, 3]
