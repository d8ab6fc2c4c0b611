"""Reading labels off a gradient: equations by hand, methods on real gradients, and the attack `label_inference`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim import batchnorm, metrics
from fedsim.adversaries.base import Job, Observation, Situation
from fedsim.adversaries.inversion import labels, last_layer
from fedsim.adversaries.inversion.closed_form import label_counts
from fedsim.adversaries.inversion.recipes.label_inference import LabelInference
from fedsim.adversaries.inversion.victim import Victim, rebuild
from fedsim.errors import InputError
from fedsim.models.catalog import MLP, ConvNet6, PreActResNet18
from fedsim.models.loss import cross_entropy
from fedsim.protocol import Batch

VictimOf = Callable[..., tuple[Observation, Batch]]
CPU = torch.device("cpu")
RELU = MLP(hidden=(64,))
BATCH_OF_8 = Situation("mlp", False, "local", "fedsgd", True, (8,))
INFERRED = [method for method in labels.METHODS if method != "known"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def counted(labels_: Tensor, classes: int = 10) -> list[int]:
    return torch.bincount(labels_, minlength=classes).tolist()


# --- the equations, by hand -----------------------------------------------------------------------------------------


def test_one_label_is_the_negative_bias_entry_or_the_row_against_all_others() -> None:
    residual = column(0.2, -0.7, 0.4, 0.1)  # predictions less the label 1
    assert label_counts.single(torch.zeros(4, 3), residual).tolist() == [0, 1, 0, 0]
    for features in (column(1, 2, 0), column(-1, -2, 0.5), column(3, -4, 0.1)):
        assert label_counts.single(torch.outer(residual, features), None).tolist() == [0, 1, 0, 0]
    assert label_counts.single(torch.outer(column(0.6, -0.6), column(1, 0)), None).tolist() == [0, 1]


def test_distinct_labels_are_those_with_the_smallest_entries() -> None:
    weight = torch.tensor([[0.1, 0.2], [-0.5, 0.9], [0.3, -0.1], [0.0, 0.4]])
    assert label_counts.distinct(weight, 1).tolist() == [0, 1, 0, 0]
    assert label_counts.distinct(weight, 2).tolist() == [0, 1, 1, 0]
    assert label_counts.distinct(weight, 3).tolist() == [0, 1, 1, 1]  # 0.0 before 0.1


def test_even_predictions_give_the_counts_exactly() -> None:
    counts = torch.tensor([3, 0, 1, 4])
    assert torch.equal(label_counts.from_bias(0.25 - counts / 8, 8), counts)


def test_llg_gives_negative_rows_a_label_first_and_then_goes_on_greedily() -> None:
    rows = column(-0.5, -0.1, 0.2, 0.4)
    # -0.6 / 4 times 5/4; -0.5 and -0.1 become -0.3125 and 0.0875; then class 0 is lowest: -0.125, and again: 0.0625.
    assert label_counts.shared_impact(rows, 4) == pytest.approx(-0.1875)
    assert label_counts.llg(rows, -0.1875, 0.0, 4).tolist() == [3, 1, 0, 0]
    # With what class 2 has without images taken off, it is at -0.4: lower than -0.3125, but once given one, at -0.2125.
    assert label_counts.llg(rows, -0.1875, column(0, 0, 0.6, 0), 4).tolist() == [2, 1, 1, 0]
    assert label_counts.llg(column(-3, -1, -2, 1), -1.0, 0.0, 2).tolist() == [1, 0, 1, 0]


def test_impact_and_offset_of_dummies_are_those_of_batches_labelled_with_one_class_each() -> None:
    rng, classes, count = generator(), 4, 6
    features = torch.rand((count, 5), generator=rng)
    layer = nn.Linear(5, classes)
    impacts, others = [], torch.zeros(classes)
    for label in range(classes):
        loss = cross_entropy(layer(features), torch.full((count,), label))
        rows = torch.autograd.grad(loss, layer.weight)[0].sum(1)
        impacts.append(float(rows[label]) / count)
        others += torch.where(torch.arange(classes) == label, 0, rows) / (classes - 1)
    impact, offset = label_counts.model_impact(features, layer(features).detach().softmax(1), count)
    assert impact == pytest.approx((1 + 1 / classes) * sum(impacts) / classes, rel=1e-5)
    torch.testing.assert_close(offset, others)


def test_class_predictions_are_those_of_the_mean_feature() -> None:
    own_weight, own_bias = torch.eye(2, dtype=torch.float64), column(0, 0)
    bias = column(0.5, -0.5)
    weight = torch.stack([0.5 * column(2, 0), -0.5 * column(0, 2)])
    expected = torch.tensor([[2.0, 0], [0, 2]], dtype=torch.float64).softmax(1)
    torch.testing.assert_close(label_counts.class_predictions(weight, bias, own_weight, own_bias), expected)


def test_a_class_whose_bias_gradient_cancels_out_gets_no_features_out_of_proportion() -> None:
    own_weight, own_bias = torch.eye(3, dtype=torch.float64), column(0, 0, 0)
    weight = torch.tensor([[1.0, 0, 0], [0, -1.0, 0], [0, 0, 1.0]], dtype=torch.float64)
    found = label_counts.class_predictions(weight, column(0.5, -0.5, 1e-9), own_weight, own_bias)
    torch.testing.assert_close(found[2], column(0, 0, 2).softmax(0))  # and not of (0, 0, 1e9)
    nothing = label_counts.class_predictions(torch.zeros_like(weight), column(0, 0, 0), own_weight, column(0, 1, 0))
    torch.testing.assert_close(nothing, column(0, 1, 0).softmax(0).expand(3, 3))


def test_counts_solve_the_linear_system() -> None:
    predictions = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64)
    counts = column(5, 0, 3)
    bias = (counts @ predictions - counts) / 8
    torch.testing.assert_close(label_counts.restore(predictions, bias, 8), counts)


@pytest.mark.parametrize(
    ("amounts", "count", "expected"),
    [
        ((1.6, 2.4, 0.0), 4, [2, 2, 0]),
        ((-0.5, 1.9, 1.9), 4, [0, 2, 2]),
        ((3.0, 2.0, 0.2), 4, [2, 2, 0]),
        ((0.0, 0.0, 0.0), 2, [1, 1, 0]),
    ],
)
def test_amounts_are_rounded_to_whole_numbers_with_the_right_sum(
    amounts: tuple[float, ...], count: int, expected: list[int]
) -> None:
    assert label_counts.whole(column(*amounts), count).tolist() == expected


def test_a_contradiction_is_what_lies_below_a_prediction_of_zero() -> None:
    bias = column(0.1, -0.4, 0.3)  # of labels that are all 1, with the predictions 0.1, 0.6 and 0.3
    assert label_counts.contradiction(bias, torch.tensor([0, 4, 0])) == 0
    assert label_counts.contradiction(bias, torch.tensor([0, 1, 3])) == pytest.approx(0.15)
    assert label_counts.contradiction(bias, torch.tensor([4, 0, 0])) == pytest.approx(0.4)


# --- real gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_idlg_reads_the_label_of_one_image(seed: int, activation: Any, with_bias: bool, victim_of: VictimOf) -> None:
    seen, batch = victim_of(4, MLP(hidden=(64,), activation=activation))
    alone = Observation(1, 0, "link", seen.tensors, {**seen.facts, "num_examples": 1})
    victim = victim_with(rebuild(alone, CPU), batch.images[seed : seed + 1], batch.labels[seed : seed + 1])
    if not with_bias:
        del victim.target["fc2.bias"]
    assert torch.equal(labels.idlg(victim), batch.labels[seed : seed + 1])


def victim_with(victim: Victim, images: Tensor, known: Tensor) -> Victim:
    """The victim with the gradient of these images."""
    own = {name: value.detach().requires_grad_() for name, value in victim.parameters.items()}
    loss = cross_entropy(functional_call(victim.model, own, (victim.normalise(images),)), known)
    gradient = torch.autograd.grad(loss, list(own.values()))
    return replace(victim, target=dict(zip(own, gradient, strict=True)), shape=(len(images), *victim.shape[1:]))


@pytest.mark.parametrize(
    ("method", "count", "least"),
    [
        ("bias", 8, 1.0),
        ("bias", 32, 0.85),
        ("llg", 4, 1.0),
        ("llg", 32, 0.5),
        ("llg_model", 8, 1.0),
        ("llg_model", 32, 0.85),
        ("ilrg", 8, 1.0),
        ("ilrg", 32, 0.9),
    ],
)
def test_repeated_labels_are_read_off_a_batch(method: str, count: int, least: float, victim_of: VictimOf) -> None:
    seen, batch = victim_of(count, RELU)
    found = labels.infer(method, seen, rebuild(seen, CPU), generator())
    assert found.dtype == torch.int64
    assert found.shape == (count,)
    assert len(set(batch.labels.tolist())) < count, "the batch has to repeat a label"
    assert metrics.label_accuracy(found, batch.labels) >= least


def test_yin_reads_distinct_labels_and_misses_repeated_ones(victim_of: VictimOf) -> None:
    seen, batch = victim_of(16, RELU)
    first = [batch.labels.tolist().index(label) for label in sorted(set(batch.labels.tolist()))][:5]
    victim = victim_with(rebuild(seen, CPU), batch.images[first], batch.labels[first])
    assert torch.equal(labels.yin(victim), batch.labels[first])
    twice = victim_with(victim, batch.images[[0, 0, 0]], batch.labels[[0, 0, 0]])
    assert len(set(labels.yin(twice).tolist())) == 3


def test_the_model_under_attack_and_the_shared_generator_are_left_as_they_were(victim_of: VictimOf) -> None:
    seen, batch = victim_of(4, PreActResNet18(), "preact_resnet18")
    victim = rebuild(seen, CPU)
    before, state = {name: value.clone() for name, value in victim.model.named_buffers()}, torch.random.get_rng_state()
    found = labels.infer("llg_model", seen, victim, generator())
    assert torch.equal(found, labels.infer("llg_model", seen, victim, generator()))
    assert metrics.label_accuracy(found, batch.labels) >= 0.75
    assert all(torch.equal(value, before[name]) for name, value in victim.model.named_buffers())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_statistics_that_were_broadcast_are_left_as_they_were(victim_of: VictimOf) -> None:
    seen, _ = victim_of(4, PreActResNet18(), "preact_resnet18")
    sent = batchnorm.statistics(rebuild(seen, CPU).model)
    tensors = {**seen.tensors, **{f"buffers/{name}": value.clone() for name, value in sent.items()}}
    labels.infer("llg_model", replace(seen, tensors=tensors), rebuild(seen, CPU), generator())
    assert all(torch.equal(tensors[f"buffers/{name}"], value) for name, value in sent.items())


def test_features_and_predictions_of_the_dummies_belong_together(victim_of: VictimOf) -> None:
    seen, _ = victim_of(3, ConvNet6(width=4, hidden=16), "convnet6")
    victim = rebuild(seen, CPU)
    layer = last_layer.read(victim)
    assert layer is not None and layer.own_bias is not None
    features, predictions = last_layer.dummy_pass(victim, layer.name, 2, generator(), {})
    assert features.shape == (6, 16)
    again = (features @ layer.own_weight.T + layer.own_bias).softmax(1)
    torch.testing.assert_close(predictions, again, atol=1e-6, rtol=1e-4)


def test_several_local_steps_are_read_as_their_mean_gradient(victim_of: VictimOf) -> None:
    seen, batch = victim_of(8, RELU)
    rate, steps = 0.1, 4
    update = {
        name: value * rate * steps if name.startswith("update/") else value for name, value in seen.tensors.items()
    }
    facts = {**seen.facts, "algorithm": "fedavg", "num_steps": steps, "learning_rate": rate}
    several = rebuild(Observation(1, 0, "link", update, facts), CPU)
    layers = last_layer.read(rebuild(seen, CPU)), last_layer.read(several)
    assert layers[0] is not None and layers[1] is not None
    torch.testing.assert_close(layers[0].weight, layers[1].weight)
    assert counted(labels.bias(several)) == counted(batch.labels)


def test_known_labels_are_those_granted_and_soft_ones_start_from_the_attacks_own_draws(victim_of: VictimOf) -> None:
    seen, batch = victim_of(4)
    victim = rebuild(seen, CPU)
    assert torch.equal(labels.infer("known", seen, victim, generator()), batch.labels)
    start = labels.soft_start(victim, generator())
    assert start.shape == (4, 10)
    assert torch.equal(start, labels.soft_start(victim, generator()))
    assert not torch.equal(start, labels.soft_start(victim, generator(1)))


# --- what does not fit ----------------------------------------------------------------------------------------------


class Convolutional(nn.Sequential):
    """No fully connected layer."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 10, 8), nn.Flatten())


@pytest.mark.parametrize("method", INFERRED)
def test_a_model_without_a_fully_connected_layer_is_refused(method: str, victim_of: VictimOf) -> None:
    seen, _ = victim_of(1)
    victim = replace(rebuild(seen, CPU), model=Convolutional())
    with pytest.raises(InputError, match=f"labels by {method}: the model has no fully connected layer.*grant"):
        labels.infer(method, seen, victim, generator())
    situation = replace(BATCH_OF_8, batch_sizes=(1,))
    assert "no fully connected layer" in (labels.refusal(method, Convolutional(), situation) or "")


@pytest.mark.parametrize("method", INFERRED)
def test_methods_that_need_a_bias_say_so(method: str, victim_of: VictimOf) -> None:
    seen, batch = victim_of(1, RELU)
    victim = rebuild(seen, CPU)
    del victim.target["fc2.bias"], victim.parameters["fc2.bias"]
    victim.model.get_submodule("fc2").bias = None
    objection = labels.refusal(method, victim.model, replace(BATCH_OF_8, batch_sizes=(1,)))
    if method in ("bias", "ilrg"):
        assert objection is not None and "no bias" in objection and "use llg" in objection
        with pytest.raises(InputError, match="no bias"):
            labels.infer(method, seen, victim, generator())
    else:
        assert objection is None
        assert torch.equal(labels.infer(method, seen, victim, generator()), batch.labels)
        assert labels.contradiction(victim, batch.labels) is None


def test_idlg_and_yin_refuse_the_batches_that_they_cannot_read(victim_of: VictimOf) -> None:
    seen, _ = victim_of(11, RELU)
    victim = rebuild(seen, CPU)
    with pytest.raises(InputError, match="label of one image, but the update is of 11; infer the labels by bias"):
        labels.idlg(victim)
    with pytest.raises(InputError, match="no class twice, but the update is of 11 images of 10 classes"):
        labels.yin(victim)
    large = replace(BATCH_OF_8, batch_sizes=(1, 11))
    for model in (victim.model, None):
        assert "set it to 1 for that client, or infer" in (labels.refusal("idlg", model, BATCH_OF_8) or "")
    assert "no class twice" in (labels.refusal("yin", victim.model, large) or "")
    assert labels.refusal("yin", victim.model, BATCH_OF_8) is None
    summed = replace(BATCH_OF_8, batch_sizes=(8, 8), aggregate=True)
    assert "16 images" in (labels.refusal("yin", victim.model, summed) or "")
    steps = replace(BATCH_OF_8, algorithm="fedavg", one_gradient=False, batch_sizes=(1,))
    assert "several local steps" in (labels.refusal("idlg", victim.model, steps) or "")
    for method in ("bias", "llg", "llg_model", "ilrg", "known", "joint"):
        assert labels.refusal(method, victim.model, large) is None


@pytest.mark.parametrize("method", INFERRED)
def test_a_gradient_that_is_not_finite_says_nothing(method: str, victim_of: VictimOf) -> None:
    seen, _ = victim_of(1, RELU)
    tensors = {**seen.tensors, "update/fc2.weight": seen.tensors["update/fc2.weight"] * float("nan")}
    victim = rebuild(Observation(1, 0, "link", tensors, seen.facts), CPU)
    with pytest.raises(InputError, match=r"'fc2' holds NaN or Inf"):
        labels.infer(method, seen, victim, generator())


# --- the attack -----------------------------------------------------------------------------------------------------


def test_the_settings_are_read_without_torch() -> None:
    code = (
        "import sys; from fedsim.adversaries.inversion.recipes.label_inference import LabelInference; "
        "LabelInference().needs; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_attack_returns_labels_and_no_images(victim_of: VictimOf) -> None:
    seen, batch = victim_of(8, RELU)
    blind = {name: value for name, value in seen.tensors.items() if not name.startswith("known/")}
    (job,) = LabelInference().capture(Observation(1, 0, "link", blind, seen.facts))
    found = LabelInference().attack(job, CPU, generator())
    assert found.images is None
    assert found.labels is not None and counted(found.labels) == counted(batch.labels)
    assert found.objective == pytest.approx(0, abs=1e-6)
    assert (found.iterations, found.status, found.history) == (0, "done", ())
    assert LabelInference().needs == {"global_model", "update", "num_examples"}


def test_the_objective_tells_of_labels_that_cannot_be_right(victim_of: VictimOf) -> None:
    seen, batch = victim_of(8, RELU)
    found = LabelInference(method="yin").attack(Job((seen,)), CPU, generator())
    assert found.labels is not None and metrics.label_accuracy(found.labels, batch.labels) < 1
    assert 0.01 < found.objective <= 1 - metrics.label_accuracy(found.labels, batch.labels)


def test_the_attack_objects_before_a_run(victim_of: VictimOf) -> None:
    model = rebuild(victim_of(1, RELU)[0], CPU).model
    assert LabelInference().objection_to(model, BATCH_OF_8) is None
    assert "labels by idlg" in (LabelInference(method="idlg").objection_to(model, BATCH_OF_8) or "")
