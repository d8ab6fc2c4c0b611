from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from fedsim.clients.training import Body, schedule, train
from fedsim.data.dataset import Normalisation
from fedsim.experiment import LocalTraining
from fedsim.protocol import Batch

SHARE = torch.arange(100, 110)
NORMALISE = Normalisation((0.0,), (1.0,))


def plan(algorithm: str = "fedavg", round_: int = 1, client: int = 0, **settings: object) -> list[list[int]]:
    training = LocalTraining(**settings)  # type: ignore[arg-type]
    return [batch.tolist() for batch in schedule(SHARE, training, algorithm, 0, round_, client)]  # type: ignore[arg-type]


def test_fedsgd_takes_one_batch_without_repetition() -> None:
    (batch,) = plan("fedsgd", batch_size=8)
    assert len(set(batch)) == 8
    assert set(batch) <= set(SHARE.tolist())


def test_a_client_with_fewer_images_than_a_batch_uses_them_all() -> None:
    (batch,) = plan("fedsgd", batch_size=64)
    assert sorted(batch) == SHARE.tolist()


def test_fedavg_epochs_are_shuffled_passes_with_a_smaller_last_batch() -> None:
    batches = plan(batch_size=4, local_epochs=2)
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    first, second = [*itertools.chain(*batches[:3])], [*itertools.chain(*batches[3:])]
    assert sorted(first) == sorted(second) == SHARE.tolist()
    assert first != second


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_fedavg_steps_go_on_over_passes(steps: int) -> None:
    assert len(plan(batch_size=4, local_steps=steps)) == steps


def test_the_schedule_depends_on_seed_round_and_client_alone() -> None:
    assert plan(batch_size=4) == plan(batch_size=4)
    assert plan(batch_size=4) != plan(batch_size=4, round_=2)
    assert plan(batch_size=4) != plan(batch_size=4, client=1)


def test_in_order_the_rounds_walk_through_the_images_and_begin_again() -> None:
    walked = [plan("fedsgd", round_, batch_size=4, batches="in_order")[0] for round_ in range(1, 5)]
    assert walked == [[100, 101, 102, 103], [104, 105, 106, 107], [108, 109], [100, 101, 102, 103]]


def test_epochs_are_shuffled_passes_over_rounds() -> None:
    walked = [plan("fedsgd", round_, batch_size=4, batches="epochs")[0] for round_ in range(1, 7)]
    first, second = [*itertools.chain(*walked[:3])], [*itertools.chain(*walked[3:])]
    assert sorted(first) == sorted(second) == SHARE.tolist()
    assert first != second and first != SHARE.tolist()
    assert [len(batch) for batch in walked] == [4, 4, 2, 4, 4, 2]


def test_no_data_is_no_batch() -> None:
    assert schedule(torch.tensor([], dtype=torch.long), LocalTraining(), "fedavg", 0, 1, 0) == []


def setup() -> tuple[nn.Module, dict[str, torch.Tensor], list[Batch]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    parameters = {name: torch.randn_like(value) for name, value in model.named_parameters()}
    batches = [Batch(torch.rand(6, 1, 2, 2), torch.randint(3, (6,))) for _ in range(3)]
    return model, parameters, batches


def by_hand(model: nn.Module, parameters: dict[str, torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
    own = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    loss = nn.functional.cross_entropy(torch.func.functional_call(model, own, batch.images), batch.labels)
    return dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))


def test_the_fedsgd_update_is_the_gradient_at_the_broadcast_model() -> None:
    model, parameters, batches = setup()
    trained = train(model, parameters, batches[:1], LocalTraining(), "fedsgd", "share_running", NORMALISE)
    for name, gradient in by_hand(model, parameters, batches[0]).items():
        torch.testing.assert_close(trained.update.tensors[name], gradient)
    assert trained.steps == 1


def test_one_fedavg_step_at_rate_one_is_the_gradient() -> None:
    model, parameters, batches = setup()
    settings = LocalTraining(learning_rate=1.0)
    trained = train(model, parameters, batches[:1], settings, "fedavg", "share_running", NORMALISE)
    for name, gradient in by_hand(model, parameters, batches[0]).items():
        torch.testing.assert_close(trained.update.tensors[name], gradient, atol=1e-6, rtol=1e-4)


def test_the_fedavg_update_is_broadcast_minus_trained_with_momentum() -> None:
    model, parameters, batches = setup()
    settings = LocalTraining(learning_rate=0.1, momentum=0.5)
    trained = train(model, parameters, batches, settings, "fedavg", "share_running", NORMALISE)
    weights, velocity = dict(parameters), {name: torch.zeros_like(value) for name, value in parameters.items()}
    for batch in batches:
        for name, gradient in by_hand(model, weights, batch).items():
            velocity[name] = 0.5 * velocity[name] + gradient
        weights = {name: value - 0.1 * velocity[name] for name, value in weights.items()}
    for name, value in weights.items():
        torch.testing.assert_close(trained.update.tensors[name], parameters[name] - value, atol=1e-6, rtol=1e-4)


def test_the_broadcast_parameters_are_not_written_to() -> None:
    model, parameters, batches = setup()
    before = {name: value.clone() for name, value in parameters.items()}
    train(model, parameters, batches, LocalTraining(), "fedavg", "share_running", NORMALISE)
    assert all(torch.equal(before[name], value) for name, value in parameters.items())


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.1), (0.9, 0.1)])
def test_local_steps_are_those_of_torchs_sgd(momentum: float, weight_decay: float) -> None:
    model, parameters, batches = setup()
    settings = LocalTraining(learning_rate=0.1, momentum=momentum, weight_decay=weight_decay)
    trained = train(model, parameters, batches, settings, "fedavg", "share_running", NORMALISE)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(parameters[name])
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, weight_decay=weight_decay)
    for batch in batches:
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
        optimiser.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(trained.update.tensors[name], parameters[name] - value.detach())


def test_batches_may_come_one_by_one_and_normalised() -> None:
    model, parameters, batches = setup()
    settings, normalise = LocalTraining(learning_rate=0.1), Normalisation((0.31,), (0.47,))
    plain = train(model, parameters, batches, settings, "fedavg", "share_running", normalise)
    ready = (Batch(normalise(batch.images), batch.labels) for batch in batches)
    lazy = train(Body(model), parameters, ready, settings, "fedavg", "share_running", None)
    assert (lazy.loss, lazy.steps) == (plain.loss, plain.steps)
    for name, value in plain.update.tensors.items():
        assert torch.equal(lazy.update.tensors[name], value)
