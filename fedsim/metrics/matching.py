"""Which guess goes with which image of the truth: one to one, never one guess for two."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def match(guess: Tensor, truth: Tensor) -> Tensor:
    """For each image of the truth, the index of its guess, by the assignment of least squared error in all.

    The Hungarian method (Kuhn 1955). guess: (M, C, H, W), truth: (N, C, H, W). Returns (N,), int64; -1 where there are
    fewer guesses than images and none is left.
    """
    distance = torch.cdist(truth.flatten(1).double(), guess.flatten(1).double()).square()
    rows, columns = linear_sum_assignment(distance.numpy())
    order = torch.full((len(truth),), -1, dtype=torch.int64)
    order[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return order
