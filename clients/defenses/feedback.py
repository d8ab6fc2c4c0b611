"""Error feedback: what a compressor leaves out of one update is added to the client's next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fedsim.protocol import Update

if TYPE_CHECKING:
    from torch import Tensor


def compressed(
    update: Update, memory: Mapping[str, Tensor], compress: Callable[[Tensor], Tensor], feedback: bool
) -> tuple[Update, dict[str, Tensor]]:
    """The update with every tensor compressed, and what to remember.

    With feedback, for each tensor u and its residual e (0 at first): C(u + e) is sent and u + e - C(u + e) remembered,
    by parameter name, so that all that was ever sent and the memory add up to all updates. Without: C(u), and nothing.
    Source: Seide et al. (Interspeech 2014); Karimireddy et al. (ICML 2019), algorithm 2.
    """
    if not feedback:
        return update.map(compress), {}
    whole = {name: g + memory[name] if name in memory else g for name, g in update.tensors.items()}
    sent = {name: compress(g) for name, g in whole.items()}
    return Update(sent), {name: g - sent[name] for name, g in whole.items()}
