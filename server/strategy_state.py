"""What a strategy has learnt over the rounds (momentum, second moments, the last model), taken out and put back."""

from __future__ import annotations

from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy


def state_of(strategy: Strategy, fresh: Strategy) -> dict[str, Any]:
    """The attributes in which a strategy differs from one that was just made, by name.

    A strategy that holds more than attributes of plain data says so by methods `state_dict()` and
    `load_state_dict(state)`, as torch's optimisers have them.
    """
    if hasattr(strategy, "state_dict"):
        return dict(strategy.state_dict())
    before = vars(fresh)
    return {
        name: value
        for name, value in vars(strategy).items()
        if not callable(value) and (name not in before or not _same(value, before[name]))
    }


def put_back(strategy: Strategy, state: dict[str, Any]) -> None:
    """Give a strategy that was just made the state of another one."""
    if hasattr(strategy, "load_state_dict"):
        strategy.load_state_dict(state)
        return
    for name, value in state.items():
        setattr(strategy, name, value)


def _same(value: Any, other: Any) -> bool:
    """Whether a plain value is still what it was. What holds numbers for every parameter never is."""
    if isinstance(value, ArrayRecord) or type(value) is not type(other):
        return False
    plain = (type(None), bool, int, float, str, bytes)
    if isinstance(value, plain):
        return bool(value == other)
    return isinstance(value, list | tuple | dict) and not value and not other
