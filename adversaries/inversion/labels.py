"""The labels of the private batch: granted, or read off the gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsim.adversaries.base import Observation
from fedsim.adversaries.inversion.victim import Victim
from fedsim.errors import InputError


def known(seen: Observation) -> Tensor:
    """The labels that the threat model grants, int64 (N,) or soft (N, classes)."""
    return seen.tensors["known/labels"]


def idlg(victim: Victim) -> Tensor:
    """iDLG (Zhao et al. 2020, section 3): of one image, the class whose row of the last layer's gradient is negative.

    The gradient of cross-entropy by logit c, summed over the batch, is (predicted - actual count) / N, and the last
    layer's bias has just that gradient. For one image it is negative for its label alone, which the paper shows. For N
    images this goes on greedily, after Wainakh et al. (LLG, 2022): a label costs its class 1/N, so the class with the
    lowest gradient gets one label and 1/N is added to it, N times. That is an estimate: it takes the predictions to be
    spread evenly, as an untrained network's are.

    Returns int64 (N,). Raises InputError where the model's last layer with one row a class cannot be found.
    """
    rows = _last_layer(victim)
    count = victim.shape[0]
    if count == 1:
        return rows.argmin().reshape(1).cpu()
    rows = rows.clone()
    # The rows of a bias gradient sum to zero; the rows of a weight gradient are in units of the features.
    scale = 1 / count if _has_bias(victim) else rows.abs().sum() / 2 / count
    out = []
    for _ in range(count):
        lowest = int(rows.argmin())
        out.append(lowest)
        rows[lowest] += scale
    return torch.tensor(out)


def _last_layer(victim: Victim) -> Tensor:
    name = _last_name(victim)
    if _has_bias(victim):
        return victim.target[f"{name}.bias"]
    # Features after a ReLU are not negative, so the sign of a row is the sign of its bias gradient.
    return victim.target[f"{name}.weight"].sum(1)


def _has_bias(victim: Victim) -> bool:
    return f"{_last_name(victim)}.bias" in victim.target


def _last_name(victim: Victim) -> str:
    linear = [
        name
        for name, module in victim.model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == victim.classes
    ]
    if not linear:
        raise InputError(
            f"labels cannot be inferred by iDLG: the model has no fully connected layer with {victim.classes} outputs; "
            'use labels = "known"'
        )
    return linear[-1]
