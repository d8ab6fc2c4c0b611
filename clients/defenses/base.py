"""What a defense is. Two optional places to act, both pure functions of their input and of a seeded generator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from fedsim.protocol import Batch, Update


@runtime_checkable
class Defense(Protocol):
    """A local defense: a frozen dataclass of its settings, with either method or both.

    A defense that leaves one of the two places alone simply does not define that method.
    """

    def encode(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Change a private batch before the client trains on it."""
        ...

    def perturb(self, update: Update, rng: torch.Generator) -> Update:
        """Change an update before it leaves the client. `update` holds parameters only, never buffers."""
        ...
