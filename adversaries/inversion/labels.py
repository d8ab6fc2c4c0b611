"""The labels of the private batch: granted, or read off the gradient of the classification layer.

method      reads                     right where
idlg        bias, or weight           the batch is one image: always
yin         weight                    no class occurs twice, and the features are not negative
bias        bias                      the model predicts all classes about as often as one another
llg         weight                    likewise, and the features are not negative
llg_model   weight, and the model     random images are predicted like the private ones; the features are not negative
ilrg        weight, bias, the model   the images of a class are predicted much alike

Not negative are features after a ReLU or a sigmoid; after tanh, or where the last block adds without an activation,
they are of both signs. The equations are in closed_form/label_counts.py. `joint` names no method here: there the labels
are optimised together with the images, from `soft_start`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fedsim.adversaries.base import Observation, Situation
from fedsim.adversaries.inversion import last_layer
from fedsim.adversaries.inversion.closed_form import label_counts
from fedsim.adversaries.inversion.last_layer import LastLayer
from fedsim.adversaries.inversion.recipes.common import several_images
from fedsim.adversaries.inversion.victim import Victim
from fedsim.errors import InputError
from fedsim.models.layers import last_linear

DUMMY_BATCHES = 10
"""Batches of random images that llg_model looks at, as in the paper's own experiments."""
NEEDS_BIAS = frozenset({"bias", "ilrg"})
FOR_BATCHES = "bias, llg, llg_model or ilrg"


def known(seen: Observation) -> Tensor:
    """The labels that the threat model grants, int64 (N,) or soft (N, classes)."""
    return seen.tensors["known/labels"]


def soft_start(victim: Victim, rng: torch.Generator) -> Tensor:
    """First logits for labels that are optimised together with the images, N(0, 1), float32 (N, classes).

    Their softmax is the label that the loss takes (Zhu et al., "Deep Leakage from Gradients", NeurIPS 2019).
    """
    return torch.randn((victim.shape[0], victim.classes), generator=rng)


def idlg(victim: Victim) -> Tensor:
    """The label of a batch of one, int64 (1,), exactly (iDLG). Raises InputError for more images than one."""
    layer, count = _layer(victim, "idlg"), victim.shape[0]
    if count > 1:
        raise InputError(f"labels by idlg: it reads the label of one image, but the update is of {count}; {_REMEDY}")
    return _listed(label_counts.single(layer.weight, layer.bias))


def yin(victim: Victim) -> Tensor:
    """The N classes with the smallest entries, int64 (N,) (GradInversion, Yin et al. 2021). No class comes twice.

    Raises InputError where there are more images than classes.
    """
    layer, count = _layer(victim, "yin"), victim.shape[0]
    if count > victim.classes:
        raise InputError(
            f"labels by yin: it names no class twice, but the update is of {count} images of {victim.classes} classes; "
            f"{_REMEDY}"
        )
    return _listed(label_counts.distinct(layer.weight, count))


def bias(victim: Victim) -> Tensor:
    """Counts from the bias gradient alone, int64 (N,): c = N (p - b) with even predictions p."""
    layer = _layer(victim, "bias")
    assert layer.bias is not None
    return _listed(label_counts.from_bias(layer.bias, victim.shape[0]))


def llg(victim: Victim) -> Tensor:
    """LLG with the impact read off the gradient itself, int64 (N,) (Wainakh et al. 2022)."""
    rows, count = _layer(victim, "llg").weight.sum(1), victim.shape[0]
    return _listed(label_counts.llg(rows, label_counts.shared_impact(rows, count), 0.0, count))


def llg_model(victim: Victim, rng: torch.Generator, buffers: Mapping[str, Tensor] | None = None) -> Tensor:
    """LLG*, int64 (N,): impact and offset from random images run through the model (Wainakh et al. 2022).

    buffers: the broadcast statistics, which a frozen BatchNorm normalises by.
    """
    layer, count = _layer(victim, "llg_model"), victim.shape[0]
    features, predictions = last_layer.dummy_pass(victim, layer.name, DUMMY_BATCHES, rng, buffers or {})
    impact, offset = label_counts.model_impact(features, predictions, count)
    return _listed(label_counts.llg(layer.weight.sum(1), impact, offset, count))


def ilrg(victim: Victim) -> Tensor:
    """iLRG, int64 (N,): the counts that explain the bias gradient, by each class's mean prediction (Ma et al. 2023)."""
    layer, count = _layer(victim, "ilrg"), victim.shape[0]
    assert layer.bias is not None and layer.own_bias is not None
    predictions = label_counts.class_predictions(layer.weight, layer.bias, layer.own_weight, layer.own_bias)
    return _listed(label_counts.whole(label_counts.restore(predictions, layer.bias, count), count))


_Inference = Callable[[Observation, Victim, torch.Generator], Tensor]
_BY_NAME: Mapping[str, _Inference] = {
    "known": lambda seen, victim, rng: known(seen),
    "idlg": lambda seen, victim, rng: idlg(victim),
    "yin": lambda seen, victim, rng: yin(victim),
    "bias": lambda seen, victim, rng: bias(victim),
    "llg": lambda seen, victim, rng: llg(victim),
    "llg_model": lambda seen, victim, rng: llg_model(victim, rng, seen.part("buffers")),
    "ilrg": lambda seen, victim, rng: ilrg(victim),
}
METHODS = tuple(_BY_NAME)
"""What `infer` knows."""


def infer(method: str, seen: Observation, victim: Victim, rng: torch.Generator) -> Tensor:
    """The labels by one of METHODS, int64 (N,) in no order that means anything; `known` may be soft (N, classes).

    Raises InputError, with the remedy, where the method does not work on this model or batch, and where the gradient
    of the last layer is not finite.
    """
    return _BY_NAME[method](seen, victim, rng)


def contradiction(victim: Victim, labels: Tensor) -> float | None:
    """The share of the batch whose labels the bias gradient proves wrong, in [0, 1]; None without a bias.

    0 for the true labels of an undefended gradient, and for many others. labels: int64 (N,).
    """
    layer = last_layer.read(victim)
    if layer is None or layer.bias is None:
        return None
    return label_counts.contradiction(layer.bias, torch.bincount(labels, minlength=victim.classes))


def refusal(method: str, model: nn.Module | None, situation: Situation) -> str | None:
    """Why the method cannot work, before round 0, with the remedy; None where it can, as far as can be told.

    model: None asks about the situation alone.
    """
    if method not in METHODS or method == "known":
        return None
    if method == "idlg":
        steps = "it works on one image, but the clients take several local steps"
        reason = several_images(situation) or (None if situation.one_gradient else steps)
        if reason:
            return f"labels by idlg: {reason}, or {_REMEDY}"
    if model is None:
        return None
    name = last_linear(model)
    if name is None:
        return _no_layer(method, None)
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    if layer.bias is None and method in NEEDS_BIAS:
        return _no_bias(method)
    sizes = situation.batch_sizes or (1,)
    images = sum(sizes) if situation.aggregate else max(sizes)
    if method == "yin" and images > layer.out_features:
        return (
            f"labels by yin: it names no class twice, but an update is of {images} images of {layer.out_features} "
            f"classes; {_REMEDY}"
        )
    return None


_REMEDY = f"infer the labels by {FOR_BATCHES}"


def _layer(victim: Victim, method: str) -> LastLayer:
    """The classification layer, as the method needs it."""
    layer = last_layer.read(victim)
    if layer is None:
        raise InputError(_no_layer(method, victim.classes))
    if layer.bias is None and method in NEEDS_BIAS:
        raise InputError(_no_bias(method))
    if not all(bool(part.isfinite().all()) for part in (layer.weight, layer.bias) if part is not None):
        raise InputError(
            f"labels by {method}: the update of '{layer.name}' holds NaN or Inf, from which no label can be read; "
            "attack another round, or grant the labels"
        )
    return layer


def _no_layer(method: str, classes: int | None) -> str:
    outputs = "" if classes is None else f" with {classes} outputs"
    return (
        f"labels by {method}: the model has no fully connected layer{outputs} to read them off; "
        "grant the labels (knows = ['labels']), or take another model"
    )


def _no_bias(method: str) -> str:
    return f"labels by {method}: the model's last layer has no bias, whose gradient it reads; use llg or llg_model"


def _listed(counts: Tensor) -> Tensor:
    """Counts of the classes -> the labels in ascending order."""
    return torch.arange(len(counts)).repeat_interleave(counts.cpu())
