"""How many labels of a batch an attack knows."""

from __future__ import annotations

import torch
from torch import Tensor


def label_accuracy(guess: Tensor, truth: Tensor) -> float:
    """The share of the batch's labels that are in the guess, counted with multiplicity, in [0, 1].

    The order does not matter: a gradient does not tell it. guess: (M,), truth: (N,) integers, or (N, classes) soft
    labels, of which the largest counts.
    """
    truth = truth.argmax(1) if truth.dim() == 2 else truth
    guess = guess.cpu()
    classes = int(max(guess.max(), truth.max())) + 1
    counts = [torch.bincount(labels.flatten(), minlength=classes) for labels in (guess, truth)]
    return float(torch.minimum(*counts).sum()) / len(truth)
