"""An adversary whose module imports torch at once. No test is in here."""

import torch
from broken_adversaries import Fine


class Laden(Fine):
    """A conforming one, but for where it is. Source: none."""

    zero = torch.zeros(())


Laden = __import__("dataclasses").dataclass(frozen=True)(Laden)  # type: ignore[misc]
