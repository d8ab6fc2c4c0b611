"""What a client's private steps have cost so far: one mechanism for life, told from its whole history.

Opacus' accountants compose steps of the Poisson-subsampled Gaussian mechanism. A history is a float64 array (k, 3), a
row for each stretch of equal steps: noise multiplier, sampling rate q, number of steps.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

History = tuple[tuple[float, float, int], ...]


def extended(history: Tensor | None, noise_multiplier: float, rate: float, steps: int) -> Tensor:
    """The history with so many steps more."""
    rows = list(_rows(history))
    if rows and rows[-1][:2] == (noise_multiplier, rate):
        steps += rows.pop()[2]
    return torch.tensor([*rows, (noise_multiplier, rate, steps)], dtype=torch.float64)


def epsilon(history: Tensor | None, delta: float, accountant: str) -> float:
    """Epsilon at delta of the whole history; infinite where there was no noise, 0 for no history."""
    return _epsilon(_rows(history), delta, accountant)


# Clients of the same size have the same history, and Opacus' PRV accountant takes long.
@functools.lru_cache(maxsize=4096)
def _epsilon(history: History, delta: float, accountant: str) -> float:
    from opacus.accountants import create_accountant

    if not history:
        return 0.0
    if any(noise == 0 for noise, _, _ in history):
        return float("inf")
    ledger = create_accountant(accountant)
    ledger.history = list(history)
    with warnings.catch_warnings():
        # The best order may lie beyond those that are tried; what is found is a bound all the same.
        warnings.filterwarnings("ignore", "Optimal order is the")
        return float(ledger.get_epsilon(delta=delta))


@functools.lru_cache(maxsize=4096)
def calibrated(target: float, delta: float, rate: float, steps: int, accountant: str) -> float:
    """The noise multiplier with which so many steps cost at most the target epsilon, and at least 99 % of it.

    Raises ValueError if none is large enough.
    """
    from opacus.accountants.utils import get_noise_multiplier

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is the")
        return float(
            get_noise_multiplier(
                target_epsilon=target,
                target_delta=delta,
                sample_rate=rate,
                steps=steps,
                accountant=accountant,
                epsilon_tolerance=target / 100,
            )
        )


def _rows(history: Tensor | None) -> History:
    if history is None:
        return ()
    return tuple((float(noise), float(rate), int(steps)) for noise, rate, steps in history.tolist())
