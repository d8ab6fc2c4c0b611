"""A federation in which some clients train privately: what they send, what they keep, what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedsim import protocol
from fedsim.clients.app import client_app
from fedsim.clients.private.dp_sgd import DPSGD
from fedsim.clients.training import poisson_schedule
from fedsim.clients.workbench import Workbench
from fedsim.errors import InputError
from fedsim.experiment import Experiment
from fedsim.experiment_file import component
from fedsim.grids.flower_internals import SERVER_NODE, tensors_in, to_record
from fedsim.grids.inline import InlineGrid
from fedsim.grids.watched import client_of
from fedsim.runs import RoundRecord, RunFolder, read_lines
from fedsim.screens import JsonScreen
from fedsim.server.app import server_app
from fedsim.simulation import simulate

Make = Callable[..., Experiment]
PRIVATE: dict[str, Any] = {"name": "dp_sgd", "noise_multiplier": 1.0}


def group(*members: int, **settings: Any) -> dict[str, Any]:
    return {"members": list(members), "defenses": [PRIVATE], **settings}


@pytest.fixture
def mixed(small: Make) -> Experiment:
    """Clients 1 and 2 train privately."""
    return small(rounds=4, clients={"per_round": 2, "groups": [group(1, 2)]})


def parameters(place: Workbench) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in place.model.named_parameters()}


def rounds_of(experiment: Experiment) -> tuple[list[RoundRecord], InlineGrid, dict[tuple[int, int], RecordDict]]:
    """A run's records, its grid with the clients' contexts, and what each client sent in each round."""
    records: list[RoundRecord] = []
    replies: dict[tuple[int, int], RecordDict] = {}
    grid = InlineGrid(client_app(experiment), experiment.clients.count)

    def keep(message: Message) -> None:
        if message.metadata.dst_node_id == SERVER_NODE and not message.has_error():
            replies[client_of(message), int(message.metadata.group_id)] = message.content

    grid.watch(keep)
    server_app(experiment, records.append)(grid, Context(1, 0, {}, RecordDict(), {}))
    return records, grid, replies


def test_batches_are_poisson_samples() -> None:
    share, rate, rounds = torch.arange(500), 0.05, 400
    sizes, seen = [], torch.zeros(500)
    for round_ in range(rounds):
        (batch,) = poisson_schedule(share, rate, 1, 0, round_, 0)
        assert len(set(batch.tolist())) == len(batch)
        sizes.append(float(len(batch)))
        seen[batch] += 1
    sizes_ = torch.tensor(sizes)
    # Binomial(500, 0.05): mean 25, variance 23.75; of 400 draws, five and six standard errors.
    assert abs(float(sizes_.mean()) - 25) < 5 * math.sqrt(23.75 / rounds)
    assert abs(float(sizes_.var()) - 23.75) < 6 * 23.75 * math.sqrt(2 / rounds)
    assert float(seen.min()) > 3 and float(seen.max()) < 45


def test_poisson_batches_depend_on_seed_round_client_and_step() -> None:
    def drawn(seed: int = 0, round_: int = 1, client: int = 0) -> list[list[int]]:
        return [batch.tolist() for batch in poisson_schedule(torch.arange(50), 0.3, 2, seed, round_, client)]

    assert drawn() == drawn()
    assert len({str(one) for one in (drawn(), drawn(seed=1), drawn(round_=2), drawn(client=1))}) == 4
    assert drawn()[0] != drawn()[1]


@pytest.mark.parametrize(("local", "steps"), [({}, 11), ({"local_epochs": 2}, 22), ({"local_steps": 3}, 3)])
def test_an_epoch_has_as_many_steps_as_batches_make_a_data_set(small: Make, local: dict[str, int], steps: int) -> None:
    clients = {"algorithm": "fedavg", "batch_size": 32, "defenses": [PRIVATE], **local}
    place = Workbench(small(clients=clients))
    size = len(place.federation.shares[0])
    assert round(size / 32) == 11
    trained, examples = place.train(0, 1, parameters(place), {})
    assert trained.steps == steps
    assert examples == min(32 * steps, size)
    assert trained.loss is None


def test_noise_differs_between_clients_rounds_and_steps(small: Make) -> None:
    """Behind so much noise, the updates of any two clients, rounds or seeds have nothing in common."""
    loud = {"name": "dp_sgd", "noise_multiplier": 1e3}

    def update(client: int, round_: int, seed: int = 3, **clients: Any) -> torch.Tensor:
        place = Workbench(small(seed=seed, clients={"defenses": [loud], **clients}))
        trained, _ = place.train(client, round_, parameters(place), {})
        return torch.cat([value.flatten() for value in trained.update.tensors.values()])

    first = update(0, 1)
    assert torch.equal(first, update(0, 1))
    others = torch.stack([first, update(1, 1), update(0, 2), update(0, 1, seed=4)])
    assert float((torch.corrcoef(others) - torch.eye(4)).abs().max()) < 5 / math.sqrt(len(first))
    # A sum of two equal draws would be twice as long, of independent ones sqrt(2).
    local = {"algorithm": "fedavg", "learning_rate": 1.0}
    once, twice = update(0, 1, local_steps=1, **local), update(0, 1, local_steps=2, **local)
    assert float(twice.norm() / once.norm()) == pytest.approx(math.sqrt(2), rel=0.1)


def test_a_private_client_sends_nothing_that_depends_on_its_draw(mixed: Experiment) -> None:
    _, _, replies = rounds_of(mixed)
    place, sizes = Workbench(mixed), set()
    for (client, round_), content in replies.items():
        metrics = content[protocol.METRICS]
        if client not in (1, 2):
            assert protocol.TRAIN_LOSS in metrics and protocol.EPSILON not in metrics
            continue
        assert set(content) == {protocol.UPDATE, protocol.METRICS}
        assert set(metrics) == {protocol.NUM_EXAMPLES, protocol.NUM_STEPS, protocol.EPSILON, protocol.DELTA}
        assert (metrics[protocol.NUM_EXAMPLES], metrics[protocol.NUM_STEPS]) == (4, 1)
        sizes.add(len(place.replay(client, round_, {}, {}, statistics=False).batch))
    assert len(sizes) > 1


def test_only_rounds_in_which_a_client_takes_part_cost_it(mixed: Experiment) -> None:
    records, grid, _ = rounds_of(mixed)
    place = Workbench(mixed)
    for client in (1, 2):
        taken = sum(client in record.clients for record in records)
        assert taken > 0
        history = tensors_in(grid.contexts[client + 1].state, "memory-of-defense-0")["history"]
        assert history.tolist() == [[1.0, 4 / len(place.federation.shares[client]), taken]]
        assert records[-1].epsilons[client] == DPSGD().spent({"history": history})[0]
    assert any({1, 2} - set(record.clients) for record in records[1:])
    assert set(records[-1].epsilons) == {1, 2}
    assert not tensors_in(grid.contexts[1].state, "memory-of-defense-0")


def test_a_whole_run_says_what_it_cost(mixed: Experiment, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    outcome = simulate(mixed, folder, JsonScreen())
    lines = read_lines(folder.rounds)
    assert lines[0]["epsilon"] is None
    assert lines[-1]["epsilon"] == max(lines[-1]["epsilons"].values()) > 0
    assert lines[-1]["delta"] == 1e-5
    assert [line["epsilon"] for line in lines[1:]] == sorted(line["epsilon"] for line in lines[1:])
    assert not any(record.dropouts for record in outcome.rounds)
    assert all(record.train_loss is not None for record in outcome.rounds[1:] if set(record.clients) - {1, 2})


def test_a_federation_of_private_clients_learns_and_has_no_training_loss(small: Make) -> None:
    clients = {"algorithm": "fedavg", "batch_size": 64, "learning_rate": 1.0, "defenses": [PRIVATE]}
    records, _, _ = rounds_of(small(rounds=4, clients=clients, server={"learning_rate": 1.0}))
    assert all(record.train_loss is None for record in records)
    assert records[-1].test_accuracy is not None and records[-1].test_accuracy > 0.6


def test_an_empty_batch_is_a_round_like_any_other(small: Make) -> None:
    experiment = small(
        rounds=4,
        data={"name": "digits", "partition": {"kind": "iid"}},
        clients={"count": 40, "per_round": 8, "batch_size": 1, "defenses": [PRIVATE]},
    )
    records, _, replies = rounds_of(experiment)
    assert not any(record.dropouts for record in records)
    place = Workbench(experiment)
    assert 0 in [len(place.replay(*one, {}, {}, statistics=False).batch) for one in replies]


def test_encodings_before_and_perturbations_after_it_are_fine(small: Make) -> None:
    defenses = [PRIVATE, {"name": "gradient_pruning"}, {"name": "gradient_clipping"}]
    records, _, _ = rounds_of(small(rounds=1, clients={"defenses": defenses}))
    assert not records[-1].dropouts


@pytest.mark.parametrize("other", ["mixup", "instahide"])
def test_mixing_is_refused(small: Make, other: str) -> None:
    with pytest.raises(InputError, match="several mixtures"):
        small(clients={"defenses": [{"name": other, "k": 2, "upper": 0.9}, PRIVATE]})
    # A client looks again, whoever made the experiment.
    alone = small(clients={"defenses": [PRIVATE]})
    both = (component("defenses", other, ["k=2", "upper=0.9"]), *alone.clients.defenses)
    experiment = replace(alone, clients=replace(alone.clients, defenses=both))
    reason = Workbench(experiment).objection(0)
    assert reason is not None and "'dp_sgd'" in reason and "several mixtures" in reason
    records, _, _ = rounds_of(experiment)
    assert "several mixtures" in records[1].dropouts[0].reason
    assert records[1].skipped


def test_two_private_gradients_are_refused(small: Make) -> None:
    with pytest.raises(InputError, match="made once"):
        small(clients={"defenses": [PRIVATE, PRIVATE]})
    alone = small(clients={"defenses": [PRIVATE]})
    twice = replace(alone, clients=replace(alone.clients, defenses=alone.clients.defenses * 2))
    reason = Workbench(twice).objection(0)
    assert reason is not None and "made once" in reason


def test_batches_in_passes_are_refused(small: Make) -> None:
    place = Workbench(small(clients={"batches": "epochs", "defenses": [PRIVATE]}))
    assert "at random" in (place.objection(0) or "")
    with pytest.raises(InputError, match="client 0: defense 'dp_sgd'"):
        place.train(0, 1, parameters(place), {})


def test_batchnorm_is_refused_by_the_reader_of_the_file(small: Make) -> None:
    with pytest.raises(InputError, match=r'batchnorm = "share_running" BatchNorm mixes the images'):
        small(model={"name": "resnet18"}, clients={"defenses": [PRIVATE]})


def test_batchnorm_is_refused_in_the_client_too(small: Make) -> None:
    model = {"name": "resnet18"}
    data = {"name": "digits"}
    for policy, fine in (("share_running", False), ("group_norm", True), ("freeze", True)):
        made = small(
            model=model, data=data, clients={"batchnorm": "group_norm", "defenses": [PRIVATE], "batch_size": 2}
        )
        place = Workbench(replace(made, clients=replace(made.clients, batchnorm=policy)))
        assert (place.objection(0) is None) is fine, policy
        if not fine:
            with pytest.raises(InputError, match="mixes the images"):
                place.train(0, 1, parameters(place), {})


def test_the_history_is_kept_in_the_context_and_nowhere_else(mixed: Experiment) -> None:
    app, place = client_app(mixed), Workbench(mixed)
    InlineGrid(app, 4)
    state = RecordDict()
    costs = []
    for round_ in (1, 2):
        content = RecordDict(
            {protocol.ARRAYS: to_record(parameters(place)), protocol.CONFIG: ConfigRecord({protocol.ROUND: round_})}
        )
        message = Message(content, dst_node_id=2, message_type="train")
        message.metadata.__dict__["_message_id"] = str(round_)
        context = Context(1, 2, {"partition-id": 1, "num-partitions": 4}, state, {})
        costs.append(app(message, context).content[protocol.METRICS][protocol.EPSILON])
    again = DPSGD()
    memory: dict[str, torch.Tensor] = {}
    plan = place._maker(1).plan  # type: ignore[union-attr]
    for cost in costs:
        memory = again.spend(memory, plan)
        assert cost == again.spent(memory)[0]


def test_as_many_images_as_the_client_announced_are_scored(small: Make, tmp_path: Path) -> None:
    # Poisson sampling leaves some of the announced 36 images out of an epoch.
    clients = {"count": 40, "algorithm": "fedavg", "local_epochs": 1, "batch_size": 4, "defenses": [PRIVATE]}
    adversary = {"name": "dlg", "vantage": "server", "targets": [0], "rounds": [1], "iterations": 1}
    experiment = small(rounds=1, clients=clients, server={}, scores={"lpips": "off"}, adversaries=[adversary])
    (line,) = simulate(experiment, RunFolder.create(tmp_path / "run"), JsonScreen()).attacks
    assert (line["status"], line["error"]) == ("done", None)
    assert line["batch"] == line["images"] < 36
