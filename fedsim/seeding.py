"""Every random draw, derived from (seed, what it is for) and from nothing else.

A draw therefore does not depend on which worker makes it, nor on what was drawn before it: the same file and seed give
the same bits for any number of workers, and a client's private batch can be derived again when it is scored.
Keys for cryptography are not drawn here; those come from the operating system.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit integer: the start of SHA-256 over the seed and the purpose, e.g. `derive(0, "batch", 3, 7)`."""
    # Told apart, so that "3" and 3 differ, while NumPy's 3 is Python's.
    text = "\x1f".join(f"{'str' if isinstance(part, str) else 'int'}:{part}" for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A torch generator on the CPU, seeded by `derive`. Draws are made on the CPU, then moved: same bits everywhere."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *purpose))


@contextmanager
def global_draws(device: torch.device, seed: int, *purpose: str | int) -> Iterator[None]:
    """Layers that draw (dropout, stochastic depth) know torch's global generator alone: in the block it begins at
    `derive`, on the CPU and on the device, and is afterwards what it was.
    """
    import torch

    start = derive(seed, *purpose)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(start)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(start)
        yield


def numpy_generator(seed: int, *purpose: str | int) -> numpy.random.Generator:
    """The same for NumPy."""
    import numpy

    return numpy.random.default_rng(derive(seed, *purpose))
