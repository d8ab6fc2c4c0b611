"""SPEAR: a batch, exactly, through a fully connected layer and its ReLU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedsim.adversaries.base import Job, Situation
from fedsim.adversaries.inversion.closed_form import recheck, spear
from fedsim.adversaries.inversion.recipes.spear import Spear
from fedsim.errors import InputError
from fedsim.models.building import build
from fedsim.models.catalog import MLP, LeNet
from fedsim.models.loss import cross_entropy

CPU = torch.device("cpu")


def run(seen, seed: int = 0, **settings):
    return Spear(**settings).attack(Job((seen,)), CPU, torch.Generator().manual_seed(seed))


def situation(**changes) -> Situation:
    known = {"model": "mlp", "has_batchnorm": False, "batchnorm": "local", "algorithm": "fedsgd", "one_gradient": True}
    return Situation(**{**known, "batch_sizes": (1,), **changes})


def paired(result, batch) -> torch.Tensor:
    """For each true image, the number of the nearest guess; checks that these are exact (80 dB) and all different."""
    distance = torch.cdist(batch.images.flatten(1), result.images.flatten(1)) / batch.images[0].numel() ** 0.5
    order = distance.argmin(1)
    assert distance.amin(1).max() < 1e-4
    assert sorted(order.tolist()) == list(range(len(batch)))
    return order


def layer(b: int = 3, m: int = 40, n: int = 12, seed: int = 0):
    """A made-up batch: X (b, n), D (m, b) with the zeros of its ReLU, weight and bias of the layer."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(b, n, generator=rng, dtype=torch.float64)
    weight = torch.randn(m, n, generator=rng, dtype=torch.float64)
    bias = torch.randn(m, generator=rng, dtype=torch.float64)
    d = torch.randn(m, b, generator=rng, dtype=torch.float64) * ((weight @ x.T + bias[:, None]) > 0)
    return x, d, weight, bias


def test_the_rank_is_where_the_singular_values_drop():
    assert spear.numerical_rank(torch.tensor([5.0, 3.0, 1.0, 1e-7, 9e-8])) == 3
    assert spear.numerical_rank(torch.tensor([5.0, 1e-9, 1e-17])) == 1  # both are rounding
    assert spear.numerical_rank(torch.tensor([5.0, 4.0, 3.0, 2.0])) is None
    assert spear.numerical_rank(torch.tensor([5.0])) == 1


def test_factors_give_the_gradient_again_and_leave_out_dead_neurons():
    x, d, _, _ = layer()
    d[7] = 0
    factors, seen = spear.factorise(d @ x, 3)
    assert seen == factors.rank == 3
    assert 7 not in factors.rows.tolist()
    assert torch.allclose(factors.left.norm(dim=1), torch.ones(len(factors.rows)).double())
    again = (factors.left * factors.length[:, None]) @ factors.right
    assert torch.allclose(again, (d @ x)[factors.rows])


def test_noise_is_read_off_what_the_rank_leaves_over():
    x, d, _, _ = layer(n=400)
    noise = 1e-3 * torch.randn(40, 400, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    factors, seen = spear.factorise(d @ x + noise, 3)
    assert seen == 3
    assert 0.8e-3 < float(factors.noise.mean()) < 1.2e-3
    # A zero is then allowed to be farther off than the tolerance.
    assert factors.allowed(torch.eye(3).double(), 1e-9).min() > 1e-6


def test_drawn_rows_are_distinct_and_in_range():
    drawn = spear.draw_rows(500, 6, 4, torch.Generator().manual_seed(0))
    assert (drawn.diff(dim=1) > 0).all()
    assert drawn.min() == 0 and drawn.max() == 5


def test_null_vectors_are_orthogonal_to_their_rows_and_zero_if_not_unique():
    matrices = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 0, 0], [1, 0, 0]]], dtype=torch.float64)
    found = spear.null_vectors(matrices, torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64))
    assert torch.allclose(found[0].abs(), torch.tensor([0, 0.5**0.5, 0.5**0.5], dtype=torch.float64))
    assert torch.equal(found[1], torch.zeros(3, dtype=torch.float64))


def test_the_basis_takes_the_sparsest_and_never_a_combination_of_them():
    directions = torch.eye(3, dtype=torch.float64)
    between = (directions[0] + directions[1]) / 2**0.5
    together = torch.stack([between, *directions])
    # The combination is sparser than the third direction, but depends on the first two.
    assert spear.basis(together, torch.tensor([30, 50, 45, 20])) == [1, 2, 3]


def test_columns_of_q_up_to_scale_give_the_inputs():
    x, d, weight, bias = layer()
    factors, _ = spear.factorise(d @ x, 3)
    unit = factors.left * factors.length[:, None]
    q = torch.linalg.lstsq(unit, d[factors.rows]).solution
    directions = q / q.norm(dim=0) * torch.tensor([1.0, -1.0, 1.0])  # a sign is lost as well
    solution = spear.solve(factors, directions, d.sum(1), (weight, bias), 1e-3)
    assert torch.allclose(solution.inputs, x)
    assert torch.allclose(unit @ solution.columns, d[factors.rows])
    assert torch.equal(solution.agreement, torch.ones(3).double())
    # With a column that is none, the score falls.
    spoiled = directions.clone()
    spoiled[:, 0] = (directions[:, 0] + directions[:, 1]) / (directions[:, 0] + directions[:, 1]).norm()
    assert spear.solve(factors, spoiled, d.sum(1), (weight, bias), 1e-3).agreement.min() < 0.9


def test_refining_gets_from_a_rough_direction_to_the_exact_one():
    x, d, _, _ = layer()
    factors, _ = spear.factorise(d @ x, 3)
    q = torch.linalg.lstsq(factors.left * factors.length[:, None], d[factors.rows]).solution[:, 0]
    q = q / q.norm()
    rough = q + 1e-4 * torch.tensor([1.0, -2.0, 1.0]).double()
    fine = spear.refine(factors, rough / rough.norm(), 1e-3)
    assert (fine - q * torch.sign(fine @ q)).norm() < 1e-10


@pytest.mark.parametrize(("count", "hidden"), [(1, (30,)), (2, (64,)), (5, (200,)), (8, (200, 50))])
def test_a_batch_comes_back_exactly_with_its_labels(victim_of, count, hidden):
    seen, batch = victim_of(count, MLP(hidden=hidden))
    result = run(seen)
    assert result.status == "done"
    order = paired(result, batch)
    assert torch.equal(result.labels[order], batch.labels)
    assert result.objective < 1e-4
    assert result.notes["numerical rank"] == count


def test_the_same_seed_gives_the_same_bits(victim_of):
    seen, _ = victim_of(4, MLP(hidden=(100,)))
    one, other = run(seen, 3), run(seen, 3)
    assert torch.equal(one.images, other.images)
    assert one.objective == other.objective


class Noise:
    """A defense that adds Gaussian noise."""

    def perturb(self, update, rng):
        from fedsim.protocol import Update

        return Update({name: v + 1e-6 * torch.randn(v.shape, generator=rng) for name, v in update.tensors.items()})


def test_a_little_noise_is_survived_and_a_single_fedavg_step_too(victim_of):
    seen, batch = victim_of(4, MLP(hidden=(200,)), defenses=(Noise(),))
    paired(run(seen), batch)
    seen, batch = victim_of(4, MLP(hidden=(200,)), algorithm="fedavg", learning_rate=0.5)
    for name in list(seen.tensors):
        if name.startswith("update/"):
            seen.tensors[name].mul_(0.5)
    result = run(seen)
    paired(result, batch)
    assert result.objective < 1e-4


def test_too_few_draws_end_as_incomplete_and_say_so(victim_of):
    seen, _ = victim_of(10, MLP(hidden=(100,)))
    result = run(seen, samples=20)
    assert result.status == "incomplete"
    assert result.images.shape == (10, 1, 8, 8)
    assert torch.isfinite(result.images).all()
    assert result.objective > 0.01
    assert "raise samples" in result.notes["incomplete"]


def test_a_rank_below_the_number_of_images_is_said_and_filled_up(victim_of):
    seen, batch = victim_of(3, MLP(hidden=(100,)))
    seen.facts["num_examples"] = 4
    del seen.tensors["known/labels"]  # which would say that they were three
    result = run(seen)
    assert result.notes["numerical rank"] == 3
    assert "less than num_examples, 4" in result.notes["rank"]
    assert result.status == "incomplete" and result.labels is None
    distance = torch.cdist(batch.images.flatten(1), result.images.flatten(1))
    assert distance.amin(1).max() < 1e-3
    assert torch.allclose(result.images[3], torch.tensor(seen.facts["mean"][0]))


def test_labels_follow_from_the_derivative_of_the_loss():
    model = build(MLP(hidden=(20,)), (1, 4, 4), 5, seed=0).double()
    images = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixed = torch.tensor([[0.7, 0.3, 0, 0, 0], [0, 0, 0, 0, 1.0]], dtype=torch.float64)
    parameters = dict(model.named_parameters())
    inner = model.fc1(images.flatten(1)).detach().requires_grad_()
    loss = cross_entropy(model.fc2(torch.relu(inner)), mixed)
    (arrived,) = torch.autograd.grad(loss, inner)
    logits, derivatives = recheck.slopes(model, parameters, model.fc1, images)
    assert torch.allclose(recheck.soft_labels(logits, derivatives, arrived, 2), mixed)
    gradient = dict(
        zip(parameters, torch.autograd.grad(cross_entropy(model(images), mixed), parameters.values()), strict=True)
    )
    assert recheck.gradient_residual(model, parameters, gradient, images, mixed) < 1e-12
    doubled = {name: 2 * value for name, value in gradient.items()}
    assert recheck.gradient_residual(model, parameters, doubled, images, mixed) == pytest.approx(0.5)


def test_objections_name_the_layer_and_the_remedy():
    attack = Spear()
    assert attack.objection_to(build(MLP(), (1, 8, 8), 10, seed=0), situation()) is None
    said = attack.objection_to(build(MLP(activation="tanh"), (1, 8, 8), 10, seed=0), situation())
    assert said is not None and "'act1' (Tanh)" in said and 'activation = "relu"' in said
    said = attack.objection_to(build(MLP(hidden=()), (1, 8, 8), 10, seed=0), situation())
    assert said is not None and "nothing comes there" in said
    said = attack.objection_to(build(LeNet(), (1, 8, 8), 10, seed=0), situation())
    assert said is not None and "'conv1' (Conv2d)" in said
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.BatchNorm1d(2), nn.ReLU())
    assert "BatchNorm1d" in str(attack.objection_to(model, situation()))
    assert "local steps" in str(attack.objection(situation(one_gradient=False)))


def test_a_layer_too_narrow_for_the_batch_is_refused(victim_of):
    seen, _ = victim_of(8, MLP(hidden=(6,)))
    with pytest.raises(InputError, match="wider first layer"):
        run(seen)
