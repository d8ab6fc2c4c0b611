"""Which device torch works on."""

from __future__ import annotations

import torch

from fedsim.errors import InputError


def choose_device(wanted: str) -> torch.device:
    """`auto`: the first CUDA device if there is one, else the CPU. A device by name must be there, or InputError."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    kind = wanted.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[kind]
    if kind == "cuda" and there and ":" in wanted:
        there = int(wanted.partition(":")[2]) < torch.cuda.device_count()
    if not there:
        raise InputError(
            f'runtime.device: \'{wanted}\' is not on this machine; use "auto" or "cpu" '
            "(`fedsim doctor` shows what there is)"
        )
    if kind == "cuda":
        _steady()
    return torch.device(wanted)


def _steady() -> None:
    """Convolutions by cuDNN that give the same bits every time, in float32 throughout.

    Left alone, it takes algorithms that add up in no fixed order, and rounds to the 10 bits of TensorFloat-32: far more
    than what the equations of an exact attack can bear.
    """
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
