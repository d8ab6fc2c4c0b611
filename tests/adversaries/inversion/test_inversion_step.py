"""One step: its value and slope against an independent formula differentiated twice, and by finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_plans import HARD, SOFT, TRUTH, convolutional, images, normalised, victim
from torch import Tensor, nn

from fedsim import batchnorm
from fedsim.adversaries.inversion.calculus import RECORDED, TRANSFORMED
from fedsim.adversaries.inversion.local_steps import LocalSteps
from fedsim.adversaries.inversion.step import Guess, Knowledge, Plan, Weights, step

MODES = ["exact", "own_statistics", "infer", "proxy"]
LAST = {"none": "4", **dict.fromkeys(MODES, "6")}
PRIORS: dict[str, dict[str, Any]] = {
    "tv": {"tv": 0.4},
    "isotropic tv": {"tv": 0.4, "tv_p": 2.0, "tv_q": 0.5},
    "absolute tv": {"tv": 0.4, "tv_absolute": True},
    "l2": {"l2": 0.7},
    "orthogonality": {"orthogonality": 3.0},
    "features": {"features": 0.6},
    "task": {"task": 0.5},
    "task, squared": {"task": 0.5, "task_kind": "squared"},
}


def moved(x: Tensor, place: tuple[int, ...], by: float) -> Tensor:
    out = x.clone()
    out[place] += by
    return out


def check_slope(plan: Plan, knowledge: Knowledge, guess: Guess) -> tuple[Tensor, Guess]:
    """Compare the slope at some places of everything in the guess with a measured one."""
    value, slopes = step(plan, knowledge, guess, RECORDED)
    again, others = step(plan, knowledge, guess, TRANSFORMED)
    torch.testing.assert_close((again, others), (value, slopes))
    for name, x in guess.items():
        for number in (0, 5, x.numel() // 2, x.numel() - 1):
            place = tuple(int(i) for i in torch.unravel_index(torch.tensor(number), x.shape))
            ahead, behind = (step(plan, knowledge, {**guess, name: moved(x, place, h)})[0] for h in (1e-5, -1e-5))
            assert slopes[name][place].item() == pytest.approx((ahead - behind).item() / 2e-5, rel=1e-4, abs=1e-8)
    return value, slopes


def client(mode: str) -> nn.Module:
    """The model with torch's own BatchNorm, put so that it does what the mode says."""
    if mode == "none":
        return convolutional()
    model = normalised()
    if mode == "exact":
        with batchnorm.recording(model.train()) as passes:
            model(TRUTH)
        batchnorm.load_statistics(model, {key.replace(".", ".running_"): v for key, v in passes[0].items()})
    return model.train(mode in ("own_statistics", "infer"))


def plain_objective(mode: str, weights: dict[str, Any], labels: Tensor, x: Tensor, target: list[Tensor]) -> Tensor:
    """Objective and priors in torch's plain operations, to be differentiated twice."""
    model, before = client(mode), normalised()
    inputs: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given[0]}))
    wanted = batchnorm.statistics(client("exact") if mode in ("exact", "own_statistics") else before)
    logits = model(x)
    gradient = torch.autograd.grad(F.cross_entropy(logits, labels), list(model.parameters()), create_graph=True)
    a, b = (torch.cat([value.reshape(-1) for value in values]) for values in (gradient, target))
    total = 1 - (a @ b) / (a.norm() * b.norm())
    features = inputs[LAST[mode]]
    hot = labels if labels.dim() == 2 else F.one_hot(labels, 3).to(x.dtype)
    y = x.abs() if weights.get("tv_absolute") else x
    dx, dy = y[..., 1:] - y[..., :-1], y[..., 1:, :] - y[..., :-1, :]
    if "tv_p" in weights:
        total = total + weights["tv"] * (dx[..., :-1, :] ** 2 + dy[..., :-1] ** 2 + 1e-8).sqrt().mean()
    else:
        total = total + weights.get("tv", 0) * (dx.abs().mean() + dy.abs().mean())
    total = total + weights.get("l2", 0) * (x * x).mean()
    total = total + weights.get("orthogonality", 0) * ((x[0] * x[1]).mean()) ** 2
    if weights.get("features"):
        known = features_of_the_truth(mode)
        total = total + weights["features"] * F.mse_loss(features, known)
    if weights.get("task_kind") == "squared":
        total = total + weights["task"] * ((logits.softmax(1) - hot) ** 2).sum() / len(x)
    else:
        total = total + weights.get("task", 0) * F.cross_entropy(logits, labels)
    for name in batchnorm.layers(model) if weights.get("statistics") and mode != "proxy" else []:
        given = inputs[name].movedim(1, 0).flatten(1)
        for own, kind in ((given.mean(1), "mean"), (given.var(1, unbiased=False), "var")):
            total = total + weights["statistics"] * (own - wanted[f"{name}.running_{kind}"]).norm()
    return total


def features_of_the_truth(mode: str) -> Tensor:
    """What `victim` puts down as the features of the truth."""
    _, knowledge = victim(None if mode == "none" else normalised(), mode=mode, last=LAST[mode])
    features: Tensor = knowledge["features"]
    return features


def compare(mode: str, weights: dict[str, Any], labels: Tensor) -> None:
    plan, knowledge = victim(
        None if mode == "none" else normalised(),
        mode=mode,
        labels=labels,
        weights=Weights(**weights),
        last=LAST[mode] if "features" in weights else None,
    )
    x = images(5).requires_grad_()
    expected = plain_objective(mode, weights, labels, x, knowledge["target"])
    (slope,) = torch.autograd.grad(expected, x)
    for calculus in (RECORDED, TRANSFORMED):
        value, slopes = step(plan, knowledge, {"images": x.detach()}, calculus)
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(slopes["images"], slope)


@pytest.mark.parametrize("prior", [None, *PRIORS])
def test_with_every_prior_the_step_is_what_plain_double_backward_gives(prior: str | None) -> None:
    compare("none", PRIORS[prior] if prior else {}, HARD)


@pytest.mark.parametrize("prior", [None, *PRIORS])
def test_with_every_prior_the_slope_is_right_by_finite_differences(prior: str | None) -> None:
    weights = PRIORS[prior] if prior else {}
    plan, knowledge = victim(weights=Weights(**weights), last="4" if "features" in weights else None)
    value, _ = check_slope(plan, knowledge, {"images": images(5)})
    without, _ = step(*victim(), {"images": images(5)})
    assert (value > without + 1e-6) == (prior is not None), "the prior counts"


@pytest.mark.parametrize("kind", ["cross_entropy", "squared"])
def test_soft_labels_too(kind: str) -> None:
    compare("none", {"task": 0.5, "task_kind": kind}, SOFT)


@pytest.mark.parametrize("mode", MODES)
def test_through_batchnorm_the_step_is_what_plain_double_backward_gives(mode: str) -> None:
    compare(mode, {}, HARD)
    compare(mode, {"statistics": 0.2}, HARD)
    compare(mode, {"statistics": 0.2, "task": 0.5, "features": 0.3, "tv": 0.1}, HARD)


@pytest.mark.parametrize("mode", MODES)
def test_through_batchnorm_the_slope_is_right_by_finite_differences(mode: str) -> None:
    plan, knowledge = victim(normalised(), mode=mode, weights=Weights(statistics=0.2))
    check_slope(plan, knowledge, {"images": images(5)})


@pytest.mark.parametrize("objective", ["cosine", "angular", "squared_l2", "l1", "tag"])
def test_with_every_objective_layer_weights_and_masks_the_slope_is_right(objective: str) -> None:
    plan, knowledge = victim(objective=objective, scheme="linear")
    knowledge["masks"] = [(t.abs() > 0.1 * t.abs().max()).double() for t in knowledge["target"]]
    masked, _ = check_slope(plan, knowledge, {"images": images(5)})
    assert masked != step(plan, {**knowledge, "masks": []}, {"images": images(5)})[0]


@pytest.mark.parametrize("kind", ["cross_entropy", "squared"])
def test_labels_that_are_sought_have_a_slope_too(kind: str) -> None:
    plan, knowledge = victim(weights=Weights(task=0.5, task_kind=kind))
    knowledge["labels"] = torch.zeros(0)
    logits = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    guess = {"images": images(5), "labels": logits}
    value, slopes = check_slope(plan, knowledge, guess)
    assert slopes["labels"].abs().max() > 1e-4
    known, _ = step(plan, {**knowledge, "labels": logits.softmax(1)}, {"images": images(5)})
    torch.testing.assert_close(value, known)


def test_at_the_truth_the_objective_is_nothing() -> None:
    for model, mode in [(convolutional(), "none"), (normalised(), "own_statistics"), (normalised(), "infer")]:
        value, _ = step(*victim(model, mode=mode), {"images": TRUTH})
        assert value.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("separate", [False, True])
def test_unrolled_local_steps_with_the_agreement_of_epochs(separate: bool) -> None:
    local = LocalSteps((1, 1), 3, 0.5, momentum=0.5, weight_decay=0.1, separate=separate)
    plan, knowledge = victim(local=local, weights=Weights(order_invariance=2.0, tv=0.1, task=0.2))
    guess = {"images": images(5, 4 if separate else 2)}
    value, _ = check_slope(plan, knowledge, guess)
    without, _ = step(Plan(**{**vars(plan), "weights": Weights(tv=0.1, task=0.2)}), knowledge, guess)
    assert (value > without + 1e-2) == separate


def test_unrolled_with_batchnorm_and_the_prior_on_statistics() -> None:
    model = normalised()
    plan, knowledge = victim(
        model, mode="infer", local=LocalSteps((2,), 2, 0.3, separate=True), weights=Weights(statistics=0.2)
    )
    check_slope(plan, knowledge, {"images": images(5, 4)})


def test_nothing_is_left_behind_in_the_model() -> None:
    plan, knowledge = victim(normalised(), mode="infer", weights=Weights(statistics=0.2, features=0.1), last="6")
    before = {name: value.clone() for name, value in plan.frame.state_dict().items()}
    for calculus in (RECORDED, TRANSFORMED):
        value, slopes = step(plan, knowledge, {"images": images(5)}, calculus)
        assert not value.requires_grad
        assert not slopes["images"].requires_grad
    assert all(value.grad is None for value in plan.frame.parameters())
    assert not any(value.requires_grad for value in knowledge["parameters"].values())
    assert all(torch.equal(value, before[name]) for name, value in plan.frame.state_dict().items())
    assert plan.last is not None and not plan.last._forward_pre_hooks
    assert all(layer.seen is None for layer in plan.norms.layers)


class ChannelNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        return normed


@pytest.mark.parametrize("norm", [ChannelNorm, lambda: nn.GroupNorm(2, 4), lambda: nn.InstanceNorm2d(4, affine=True)])
def test_the_slope_is_right_through_every_kind_of_normalisation(norm: Callable[[], nn.Module]) -> None:
    """Forward-mode derivatives of some of these are differentiated wrongly by torch."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), norm(), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).double()
    plan, knowledge = victim(model)
    check_slope(plan, knowledge, {"images": images(5)})


def test_a_parameter_that_the_loss_does_not_use_is_no_obstacle() -> None:
    plan, knowledge = victim()
    plan.frame.register_parameter("idle", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    knowledge["parameters"]["idle"] = torch.ones(3, dtype=torch.float64)
    knowledge["target"] = [*knowledge["target"], torch.ones(3, dtype=torch.float64)]
    whole = Plan(**{**vars(plan), "layers": [1.0] * 5})
    _, slopes = step(whole, knowledge, {"images": images(5)})
    assert torch.isfinite(slopes["images"]).all()
    assert slopes["images"].abs().max() > 0
