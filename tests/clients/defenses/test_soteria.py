from __future__ import annotations

import pytest
import torch
from sites import NORMALISE, SHAPE, batch, rng, site
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.clients.defenses import jacobian
from fedsim.clients.defenses.jacobian import feature_norms
from fedsim.clients.defenses.soteria import Soteria
from fedsim.errors import InputError
from fedsim.models.layers import last_linear
from fedsim.protocol import Update

FEATURES, CLASSES = 8, 4


def network(batchnorm: bool = False, activation: nn.Module | None = None) -> nn.Sequential:
    """A convolution, perhaps BatchNorm, dropout, and two fully connected layers, in training mode."""
    with torch.random.fork_rng():  # torch draws initial weights from the generator of the whole process
        torch.default_generator.manual_seed(4)
        layers: list[nn.Module] = [nn.Conv2d(SHAPE[0], 3, 3), nn.ReLU(inplace=True), nn.Flatten()]
        layers += [nn.Linear(48, FEATURES), activation or nn.Tanh(), nn.Dropout(0.5), nn.Linear(FEATURES, CLASSES)]
        if batchnorm:
            layers.insert(1, nn.BatchNorm2d(3))
        return nn.Sequential(*layers).train()


def gradient(model: nn.Module) -> Update:
    """Any update of the model's shapes, without a zero in it."""
    draws = rng(7)
    return Update({name: torch.randn(value.shape, generator=draws) for name, value in model.named_parameters()})


def by_hand(model: nn.Sequential, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features and derivative norms from whole Jacobians, one image at a time; without BatchNorm and dropout."""

    def features(one: Tensor) -> Tensor:
        x = one[None]
        for layer in model[:-2]:
            x = layer(x)
        return x[0]

    norms = []
    for one in images:
        whole = torch.autograd.functional.jacobian(features, one)
        assert isinstance(whole, Tensor)
        norms.append(whole.flatten(1).norm(dim=1))
    return torch.stack([features(one) for one in images]).detach(), torch.stack(norms)


def test_norms_are_those_of_the_jacobian() -> None:
    model, images = network(), NORMALISE(batch(3).images)
    features, norms = feature_norms(model, dict(model.named_parameters()), images, "6")
    expected = by_hand(model, images)
    torch.testing.assert_close(features, expected[0])
    torch.testing.assert_close(norms, expected[1])


def test_norms_do_not_depend_on_how_many_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = network(batchnorm=True), batch(3).images
    whole = feature_norms(model, dict(model.named_parameters()), images, "7")[1]
    for at_once in (1, 7, 10**6):
        monkeypatch.setattr(jacobian, "IMAGES_AT_ONCE", at_once)
        torch.testing.assert_close(feature_norms(model, dict(model.named_parameters()), images, "7")[1], whole)


def test_with_batchnorm_in_training_the_features_of_the_whole_batch_count() -> None:
    model = network(batchnorm=True)
    images = batch(3).images.requires_grad_()
    norms = feature_norms(model, dict(model.named_parameters()), images, "7")[1]
    model[-2].eval()
    features = model[:-2](images)
    rows = [torch.autograd.grad(features[:, i].sum(), images, retain_graph=True)[0] for i in range(FEATURES)]
    torch.testing.assert_close(norms, torch.stack([row.flatten(1).norm(dim=1) for row in rows], dim=1))


def test_the_broadcast_parameters_count_and_not_the_models_own() -> None:
    model, other = network(), network()
    parameters = {name: value.detach() * 1.5 for name, value in other.named_parameters()}
    images = batch(2).images
    features, norms = feature_norms(model, parameters, images, "6")
    other.load_state_dict(parameters)
    expected = by_hand(other, images)
    torch.testing.assert_close(features, expected[0])
    torch.testing.assert_close(norms, expected[1])


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.99])
def test_the_papers_columns_are_zero_and_nothing_else_changes(ratio: float) -> None:
    model, images = network(), batch(3)
    update = gradient(model)
    before = {name: value.clone() for name, value in update.tensors.items()}
    sent, memory = Soteria(ratio).perturb_at(update, site(model, (images, batch(2, seed=8))), rng())
    features, norms = by_hand(model, NORMALISE(images.images))
    told = (features.abs() / norms).mean(0)
    expected = sorted(range(FEATURES), key=lambda i: -float(told[i]))[: round(ratio * FEATURES)]
    weight = sent.tensors["6.weight"]
    assert sorted((weight == 0).all(0).nonzero().flatten().tolist()) == sorted(expected)
    kept = [i for i in range(FEATURES) if i not in expected]
    assert torch.equal(weight[:, kept], before["6.weight"][:, kept])
    assert list(sent.tensors) == list(before) and memory == {}
    for name, value in before.items():
        assert torch.equal(update.tensors[name], value)
        assert name == "6.weight" or torch.equal(sent.tensors[name], value)


def test_the_released_rule_prunes_what_is_below_the_quantile() -> None:
    model, images = network(activation=nn.Sigmoid()), batch(3)
    sent = Soteria(0.4, "released").perturb_at(gradient(model), site(model, (images,)), rng())[0].tensors["6.weight"]
    features, norms = by_hand(model, NORMALISE(images.images))
    ratios = (norms / (features + 0.1)).sum(0)
    below = ratios < torch.quantile(ratios, 0.4)
    assert 0 < int(below.sum()) < FEATURES
    assert torch.equal((sent == 0).all(0), below)
    assert torch.equal(sent == 0, below.expand(CLASSES, -1))


def test_dead_units_come_last_by_the_paper_and_first_as_released() -> None:
    features = torch.tensor([[0.0, 1.0, 2.0, 0.0, 0.5]])
    norms = torch.tensor([[0.0, 1.0, 1.0, 2.0, 1.0]])
    assert Soteria(0.4).choose(features, norms).tolist() == [False, True, True, False, False]
    assert Soteria(0.3, "released").choose(features, norms).tolist() == [True, False, True, False, False]
    # As many dead units as are to be pruned: the quantile is 0, and nothing lies below it.
    dead = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]])
    assert not Soteria(0.4, "released").choose(dead, dead).any()


def test_the_model_is_left_as_it_was_found() -> None:
    model = network(batchnorm=True)
    model(batch(3).images)  # so that its running statistics are not those of the start
    model[1].eval()  # a mode of its own
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    own = {name: id(value) for name, value in [*model.named_parameters(), *model.named_buffers()]}
    state = torch.get_rng_state()
    for frozen in (True, False):
        model[1].train(not frozen)
        modes[2] = not frozen
        Soteria().perturb_at(gradient(model), site(model, (batch(3),)), rng())
        assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert own == {name: id(value) for name, value in [*model.named_parameters(), *model.named_buffers()]}
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(value.grad is None for value in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_gradient_with_a_column_at_zero_is_that_of_a_pruned_feature() -> None:
    """What the defense is for: the sent gradient of the last layer is that of the perturbed representation."""
    model, images = network().eval(), batch(1)
    reached = []
    model[-1].register_forward_pre_hook(lambda _, inputs: reached.append(inputs[0]))
    parameters = dict(model.named_parameters())
    logits = functional_call(model, parameters, (NORMALISE(images.images),))
    loss = nn.functional.cross_entropy(logits, images.labels)
    slopes = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    sent = Soteria(0.5).perturb_at(Update(slopes), site(model, (images,)), rng())[0].tensors
    pruned = (sent["6.weight"] == 0).all(0)
    assert int(pruned.sum()) == FEATURES // 2
    torch.testing.assert_close(sent["6.weight"], torch.outer(slopes["6.bias"], reached[0][0] * ~pruned))


def test_a_model_without_a_last_linear_layer_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(SHAPE[0], CLASSES, SHAPE[1]), nn.Flatten())
    assert last_linear(model) is None
    with pytest.raises(InputError, match=r"soteria: the model has no fully connected layer.*leave soteria out"):
        Soteria().perturb_at(gradient(model), site(model, (batch(),)), rng())


def test_a_layer_that_gets_many_vectors_an_image_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(2), nn.Linear(36, 3))
    with pytest.raises(InputError, match="does not get one vector of features an image"):
        Soteria().perturb_at(gradient(model), site(model, (batch(),)), rng())


def test_the_last_linear_layer_is_found_by_its_outputs_too() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5), nn.Linear(5, 2))
    assert last_linear(model) == "2"
    assert last_linear(model, 5) == "1"
    assert last_linear(model, 7) is None
