"""The Cocktail Party Attack: its parts against hand-computed values, and the attack on real gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fedsim.adversaries.base import Job, Situation
from fedsim.adversaries.inversion.closed_form import cocktail, feature_inversion
from fedsim.adversaries.inversion.recipes.cocktail_party import CocktailParty
from fedsim.errors import InputError
from fedsim.models.catalog import MLP, ConvNet6
from fedsim.models.lenet import lenet
from fedsim.models.mlp import mlp

CPU = torch.device("cpu")
RELU = MLP(hidden=(64,), activation="relu")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlations(guess: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Of each true signal with the guess that resembles it most; each guess may be taken once."""
    rows = len(truth)
    table = torch.corrcoef(torch.cat([truth.flatten(1), guess.flatten(1)]).double())[:rows, rows:]
    best = table.argmax(1)
    assert len(set(best.tolist())) == rows, "two signals have the same guess"
    return table.max(1).values


def test_whitened_signals_have_covariance_1_and_mean_0() -> None:
    signals = torch.randn(5, 3, generator=rng()) @ torch.rand(3, 200, generator=rng(1)) + 4
    for given in (signals, signals[:, :4]):  # more columns than rows, and fewer
        centred = given.double() - given.double().mean(1, keepdim=True)
        white = cocktail.whitening(given, 3) @ centred
        torch.testing.assert_close(white @ white.T / white.shape[1], torch.eye(3, dtype=torch.float64))
    assert cocktail.whitening(signals.double(), 5).shape == (3, 5)  # there are three signals, whatever is asked for


def test_edges_are_differences_of_neighbours() -> None:
    found = cocktail.edges(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), (1, 2, 2))
    assert found.tolist() == [[1.0, 4.0, 3.0, 6.0]]


def test_negentropy_of_a_coin_is_computed_by_hand() -> None:
    coin = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    assert float(cocktail.negentropy(coin)) == pytest.approx((math.log(math.cosh(1)) - 0.3745672) ** 2, rel=1e-4)
    grid = torch.linspace(-12, 12, 200001, dtype=torch.float64)
    normal = (-grid.square() / 2).exp() / math.sqrt(2 * math.pi)
    assert float(torch.trapezoid(normal * grid.cosh().log(), grid)) == pytest.approx(cocktail.NORMAL_LOGCOSH, abs=1e-6)


def test_alikeness_is_the_mean_over_pairs() -> None:
    rows = torch.tensor([[1.0, 0.0], [-0.6, 0.8]])
    assert float(cocktail.alikeness(rows, 2.0)) == pytest.approx(math.exp(1.2) - 1)
    assert float(cocktail.alikeness(torch.eye(3), 2.0)) == 0
    assert float(cocktail.alikeness(torch.ones(1, 1), 2.0)) == 0


def test_what_is_outside_the_range_is_told_by_the_bias() -> None:
    low, high = torch.tensor(-1.0), torch.tensor(2.0)
    values = torch.tensor([[2.0, -4.0, 6.0, 0.0]])  # with the scale 2: 1, -2, 3, 0
    assert float(cocktail.outside(values, torch.tensor([2.0]), low, high)) == pytest.approx((2 + 2) / 4)
    # with the scale -2: -1, 2, -3, 0
    assert float(cocktail.outside(values, torch.tensor([-2.0]), low, high)) == pytest.approx(4 / 4)
    assert float(cocktail.outside(values, torch.tensor([2.0]), None, None)) == 0


def test_scale_and_sign_come_from_the_bias() -> None:
    inputs = torch.randn(3, 20, generator=rng(), dtype=torch.float64)
    by_outputs = torch.randn(6, 3, generator=rng(1), dtype=torch.float64)
    weight, bias = by_outputs @ inputs, by_outputs.sum(1)
    undo = torch.linalg.pinv(by_outputs) * torch.tensor([[3.0], [-0.5], [1.0]])
    torch.testing.assert_close(cocktail.scaled_by_bias(undo @ weight, undo @ bias), inputs)


def test_scale_without_a_bias_fills_the_box() -> None:
    low, high = torch.tensor(-1.0), torch.tensor(2.0)
    found = cocktail.scaled_to_box(torch.tensor([[4.0, -8.0], [-0.5, 1.0]]), low, high)
    torch.testing.assert_close(found, torch.tensor([[-1.0, 2.0], [-1.0, 2.0]]))


def test_the_objective_is_the_weighted_sum() -> None:
    signals = torch.randn(2, 12, generator=rng())
    mixture = cocktail.Mixture(signals, signals, signals, torch.tensor([1.0, 2.0]))
    weights = cocktail.Weights(negentropy=3, decorrelation=0.7, temperature=2, relax=0.25, tv=0.4, box=5)
    low, high = torch.tensor(-0.5), torch.tensor(0.5)
    problem = cocktail.Separation(mixture, weights, low, high)
    matrix = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    rows = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    expected = (
        0.8 * (rows @ signals).abs().mean()
        - 3 * cocktail.negentropy(rows @ signals).mean()
        + 0.7 * 0.5 * (math.exp(2 * 0.8) - 1)
        + 5 * 0.25 * cocktail.outside(rows @ signals, torch.tensor([2.2, 2.0]), low, high)
    )
    torch.testing.assert_close(problem.value(matrix, 0.5), expected)


def test_known_sources_are_separated_by_negentropy_alone() -> None:
    """Classical ICA: sparse, flat and two-valued signals, mixed; no box, no edges, no bias."""
    uniform = torch.rand(4, 3000, generator=rng(), dtype=torch.float64) - 0.5
    sources = torch.stack([uniform[0].sign() * -(1 - 2 * uniform[0].abs()).log(), uniform[1], uniform[2].sign()])
    mixed = torch.randn(6, 3, generator=rng(3), dtype=torch.float64) @ sources
    mixture = cocktail.mix(mixed, None, 3, None, "values")
    weights = cocktail.Weights(negentropy=100, decorrelation=0.1, temperature=6, relax=0.5, tv=0, box=0)
    problem = cocktail.Separation(mixture, weights, None, None)
    done = cocktail.unmix(problem, cocktail.random_rotation(3, rng()), 300, 0.05, lambda *_: None)
    unmixed = done.matrix @ mixture.values
    table = torch.corrcoef(torch.cat([sources, unmixed]))[:3, 3:].abs()
    assert (table.max(1).values > 0.99).all() and len(set(table.argmax(1).tolist())) == 3
    assert done.objective < done.history[0][1]


def test_digits_are_separated(victim_of) -> None:
    seen, batch = victim_of(4, RELU)
    settings = CocktailParty(iterations=600, box=5)
    found = settings.attack(Job((seen,)), CPU, rng())
    assert found.images is not None and found.images.shape == (4, 1, 8, 8)
    assert found.images.min() >= 0 and found.images.max() <= 1
    assert (correlations(found.images, batch.images) > 0.95).all()
    assert found.labels is None and found.status == "done" and math.isfinite(found.objective)
    again = settings.attack(Job((seen,)), CPU, rng())
    assert torch.equal(found.images, again.images)


def test_the_best_restart_is_chosen_by_its_own_objective(victim_of) -> None:
    seen, _ = victim_of(3, RELU)
    found = CocktailParty(iterations=30, restarts=3).attack(Job((seen,)), CPU, rng())
    objectives = found.notes["objectives of the restarts"]
    assert len(set(objectives)) == 3 and found.objective == min(objectives)


def test_features_are_found(victim_of) -> None:
    """The features behind a convolution come out of the gradient nearly exactly, with their sign and scale."""
    _, batch = victim_of(3)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 20))
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=rng(seed)) * 0.2)
    name, layer = feature_inversion.first_linear(model)
    extract = feature_inversion.Extractor(model, dict(model.named_parameters()), layer)
    truth = extract(batch.images).detach()
    assert name == "3" and extract.map_shape(batch.images) == (8, 8, 8) and truth.shape == (3, 512)
    loss = nn.functional.cross_entropy(model(batch.images), batch.labels)
    weight, bias = torch.autograd.grad(loss, [layer.weight, layer.bias])
    mixture = cocktail.mix(weight, bias, 3, (8, 8, 8), "edges").to(CPU, torch.float32)
    weights = cocktail.Weights(negentropy=0, decorrelation=0.1, temperature=6, relax=0.05, tv=0.5, box=5)
    problem = cocktail.Separation(mixture, weights, torch.tensor(0.0), None)
    done = cocktail.unmix(problem, cocktail.random_rotation(3, rng()).float(), 400, 0.05, lambda *_: None)
    found = cocktail.scaled_by_bias(done.matrix @ mixture.values, done.matrix @ mixture.bias)
    distance = torch.cdist(found, truth) / torch.linalg.vector_norm(truth, dim=1)
    assert len(set(distance.argmin(0).tolist())) == 3
    assert (distance.min(0).values < 0.1).all(), distance


def test_an_attack_on_a_convolutional_model_inverts_features(victim_of) -> None:
    seen, batch = victim_of(2, ConvNet6(width=8, hidden=64), "convnet6")
    found = CocktailParty(iterations=60, feature_iterations=60).attack(Job((seen,)), CPU, rng())
    assert found.notes["layer"] == "fc1, which is fed features" and found.images.shape == batch.images.shape
    assert 0 <= found.notes["1 - cosine of the inverted features"] < 0.5


def test_images_are_found_by_their_features() -> None:
    matrix = torch.randn(400, 64, generator=rng())
    across = torch.linspace(0, 3, 8)
    truth = torch.stack([torch.outer(across.sin(), across.cos()), torch.outer(across.cos(), across)])[:, None]

    def extract(x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) @ matrix.T).relu()

    start = 0.1 * torch.randn(truth.shape, generator=rng(1))
    found, apart = feature_inversion.invert(extract, extract(truth), start, 0.01, 300, 0.05, lambda *_: None)
    assert apart < 0.01
    error = torch.linalg.vector_norm((found - truth).flatten(1), dim=1)
    assert (error < 0.1 * torch.linalg.vector_norm(truth.flatten(1), dim=1)).all(), error


def test_feature_inversion_sets_the_scale_of_the_image() -> None:
    matrix = torch.randn(30, 16, generator=rng())
    truth = torch.rand(2, 1, 4, 4, generator=rng(1)) * 3

    def extract(x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) @ matrix.T).tanh()

    wanted = extract(0.02 * truth)
    torch.testing.assert_close(feature_inversion.rescaled(extract, wanted, truth), 0.02 * truth, rtol=1e-4, atol=1e-6)


def test_what_is_missing_is_named() -> None:
    one = Situation("mlp", False, "local", "fedsgd", True, (4, 8))
    assert CocktailParty().objection(one) is None
    several = Situation("mlp", False, "local", "fedavg", False, (4,))
    assert "several local steps" in str(CocktailParty().objection(several))
    assert CocktailParty().objection_to(mlp((1, 8, 8), 10, hidden=(9,)), one) is None
    assert "8 images" in str(CocktailParty().objection_to(mlp((1, 8, 8), 10, hidden=(8,)), one))
    together = Situation("mlp", False, "local", "fedsgd", True, (4, 8), aggregate=True)
    assert "12 images" in str(CocktailParty().objection_to(lenet((1, 8, 8), 10), together))
    assert "has none" in str(CocktailParty().objection_to(nn.Sequential(nn.Conv2d(1, 1, 3)), one))
    tied = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 20))
    assert "BatchNorm" in str(CocktailParty().objection_to(tied, one))
    after = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20))
    assert CocktailParty().objection_to(after, one) is None
    assert "attention" in str(
        CocktailParty().objection_to(nn.Sequential(nn.Linear(4, 20), nn.MultiheadAttention(4, 1)), one)
    )


def test_a_gradient_without_information_is_refused(victim_of) -> None:
    seen, _ = victim_of(2, RELU)
    empty = {name: value * 0 if name.startswith("update/") else value for name, value in seen.tensors.items()}
    blank = type(seen)(seen.round, seen.client, seen.vantage, empty, seen.facts)
    with pytest.raises(InputError, match="zero or not finite"):
        CocktailParty(iterations=5).attack(Job((blank,)), CPU, rng())
