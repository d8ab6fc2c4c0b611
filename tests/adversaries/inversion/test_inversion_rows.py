"""Phong et al.: images read off the rows of a fully connected layer's gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedsim.adversaries.base import Job, Situation
from fedsim.adversaries.inversion.closed_form import first_layer, rows
from fedsim.adversaries.inversion.recipes.phong import Phong
from fedsim.adversaries.inversion.victim import rebuild
from fedsim.errors import InputError
from fedsim.models.building import build
from fedsim.models.catalog import MLP, LeNet

CPU = torch.device("cpu")
X = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 4.0]], dtype=torch.float64)


def layer_gradient(derivatives: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """dL/dW and dL/db of the inputs X from d (m, 2)."""
    d = torch.tensor(derivatives, dtype=torch.float64)
    return d @ X, d.sum(1)


def run(seen, **settings):
    return Phong(**settings).attack(Job((seen,)), CPU, torch.Generator().manual_seed(0))


def situation(**changes) -> Situation:
    known = {"model": "mlp", "has_batchnorm": False, "batchnorm": "local", "algorithm": "fedsgd", "one_gradient": True}
    return Situation(**{**known, "batch_sizes": (1,), **changes})


def test_a_quotient_is_the_mean_of_the_inputs_weighted_by_the_derivatives():
    values, kept = rows.quotients(*layer_gradient([[2.0, 0.0], [3.0, 1.0], [1.0, -1.0], [0.0, 0.0]]), least=1e-9)
    assert kept.tolist() == [0, 1]  # the last two have a bias gradient of zero
    assert torch.allclose(values, torch.stack([X[0], (3 * X[0] + X[1]) / 4]))


def test_one_input_is_the_least_squares_solution():
    weight, bias = layer_gradient([[2.0, 0.0], [-1.0, 0.0]])
    assert torch.allclose(rows.one_input(weight, bias), X[0])
    # An error in a row with bias gradient 2 of (2, -1) counts 2 / 5.
    weight[0] += torch.tensor([5.0, 0.0, 0.0])
    assert torch.allclose(rows.one_input(weight, bias), X[0] + torch.tensor([2.0, 0.0, 0.0]))


def test_one_input_passes_over_what_was_pruned():
    weight, bias = layer_gradient([[2.0, 0.0], [-1.0, 0.0], [3.0, 0.0]])
    weight[0, 1] = weight[2, 2] = bias[1] = 0
    assert torch.allclose(rows.one_input(weight, bias), X[0])


def test_agreeing_rows_form_groups_and_the_largest_comes_first():
    inputs = torch.stack([X[0], X[1], X[0] + 1e-6, X[1] - 1e-6, X[1], X[0] + X[1]])
    groups = [sorted(group.flatten().tolist()) for group in rows.agreeing(inputs, 1e-4)]
    assert groups == [[1, 3, 4], [0, 2], [5]]


def test_nothing_is_unexplained_by_the_inputs_themselves_and_a_multiple_does_not_explain():
    weight, bias = layer_gradient([[2.0, 1.0], [3.0, -1.0]])
    assert rows.unexplained(weight, bias, X).norm() < 1e-12
    assert torch.equal(rows.unexplained(weight, bias, X[:0]), torch.cat([weight, bias[:, None]], 1))
    # 2 x spans the same pixels, but not the bias gradient.
    weight, bias = layer_gradient([[2.0, 0.0]])
    assert rows.unexplained(weight, bias, X[:1]).norm() < 1e-12
    assert rows.unexplained(weight, bias, 2 * X[:1]).norm() > 0.1


def test_outside_is_the_mean_distance_from_the_box():
    low, high = torch.zeros(3), torch.full((3,), 3.0)
    assert torch.allclose(rows.outside(X.float(), low, high), torch.tensor([0.0, 2 / 3]))


def test_candidates_are_the_agreed_inputs_then_the_corner_of_the_hull():
    # Two rows for the first input alone, one for the second, and mixtures of both with larger gradients.
    weight, bias = layer_gradient([[2.0, 0.0], [30.0, 10.0], [1.0, 0.0], [0.0, 1.0], [20.0, 20.0]])
    low, high = torch.full((3,), -5.0).double(), torch.full((3,), 5.0).double()
    found, agree = rows.candidates(weight, bias, 2, low, high, 1e-4, 1e-9)
    assert torch.allclose(found, X)
    assert agree == [2, 1]


def test_one_image_is_exact_with_any_activation(victim_of):
    for settings in (MLP(hidden=(64,), activation="tanh"), MLP(hidden=(), activation="relu")):
        seen, batch = victim_of(1, settings)
        result = run(seen)
        assert result.status == "done"
        assert result.images.dtype == torch.float32
        assert (result.images - batch.images).abs().max() < 1e-5
        assert result.objective < 1e-6


def test_a_small_batch_is_exact_behind_a_relu(victim_of):
    seen, batch = victim_of(3, MLP(hidden=(300,)))
    result = run(seen)
    assert result.status == "done"
    distance = torch.cdist(batch.images.flatten(1), result.images.flatten(1))
    assert distance.amin(1).max() < 1e-3
    assert sorted(distance.argmin(1).tolist()) == [0, 1, 2]
    assert min(result.notes["rows that agree on each image"]) > 1


def test_a_batch_behind_tanh_gives_mixtures_and_says_so(victim_of):
    seen, batch = victim_of(3)
    result = run(seen)
    assert result.status == "mixtures"
    assert result.images.shape == batch.images.shape
    assert "mixtures" in result.notes


def test_one_step_of_fedavg_does_as_well(victim_of):
    seen, batch = victim_of(1, algorithm="fedavg", learning_rate=0.5)
    assert (run(seen).images - batch.images).abs().max() < 1e-5


def test_a_batch_of_equal_images_is_filled_up_with_the_mean_image(victim_of):
    seen, batch = victim_of(1, MLP(hidden=(64,)))
    seen.facts["num_examples"] = 2  # a gradient of rank 1 for two images
    del seen.tensors["known/labels"]  # which would say that it was one
    result = run(seen)
    assert (result.images[0] - batch.images[0]).abs().max() < 1e-5
    assert torch.allclose(result.images[1], torch.tensor(seen.facts["mean"][0]))
    assert "missing" in result.notes
    assert result.status == "incomplete"


def test_objections_name_the_layer_and_the_remedy():
    phong = Phong()
    assert phong.objection_to(build(MLP(), (1, 8, 8), 10, seed=0), situation()) is None
    said = phong.objection_to(build(LeNet(), (1, 8, 8), 10, seed=0), situation(model="lenet"))
    assert said is not None and "'conv1' (Conv2d)" in said and "mlp" in said
    said = phong.objection_to(nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)), situation())
    assert said is not None and "'1' (Linear)" in said and "bias" in said
    said = phong.objection_to(nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 2)), situation())
    assert said is not None and "'0' (AvgPool2d)" in said
    assert first_layer.misfit(nn.Sequential(nn.Flatten())) is not None
    assert phong.objection(situation()) is None
    assert "local steps" in str(phong.objection(situation(one_gradient=False)))


class Doubling(nn.Module):
    """A model that alters the image where no layer shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, images):
        return self.fc(2 * images.flatten(1))


def test_an_image_altered_on_the_way_to_the_layer_is_noticed(victim_of):
    victim = rebuild(victim_of(1, MLP(hidden=()))[0], CPU)
    assert first_layer.find(victim) == "fc1"
    model = Doubling()
    altered = type(victim)(**{**vars(victim), "model": model, "parameters": dict(model.named_parameters())})
    assert not first_layer.sees_image(altered, "fc")
    with pytest.raises(InputError, match="bare, flattened image"):
        first_layer.find(altered)
    assert model.training  # left as it was


def test_a_gradient_that_says_nothing_is_refused(victim_of):
    seen, _ = victim_of(1)
    for name in list(seen.tensors):
        if name.startswith("update/"):
            seen.tensors[name].zero_()
    with pytest.raises(InputError, match="is zero"):
        run(seen)
    seen.tensors["update/fc1.weight"].fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        run(seen)
