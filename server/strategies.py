"""Flower's own strategies by name, with the settings that make sense in a simulation.

Sampling is not theirs here: the round loop shows a strategy only the clients drawn for the round, and it takes all.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from fedsim.settings import Count, Index, OpenFraction, Positive

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

_EVERYONE: dict[str, Any] = {
    "fraction_train": 1.0,
    "min_train_nodes": 1,
    "min_available_nodes": 1,
}


class _Settings:
    """What every strategy's settings can do."""

    double_precision: ClassVar[bool] = False
    """Whether weights must be handed over as float64."""
    individual_updates: ClassVar[bool] = True
    """Whether it compares the updates of single clients, so that their mean would not do."""

    def build(self) -> Strategy:
        """Flower's strategy of the same name, with these settings."""
        from flwr.serverapp import strategy

        assert is_dataclass(self) and not isinstance(self, type)
        made: Strategy = getattr(strategy, type(self).__name__)(**_EVERYONE, **asdict(self))
        return made

    def check_clients(self, count: int) -> str | None:
        """Why the strategy cannot work with `count` clients a round; None if it can."""
        return None


@dataclass(frozen=True)
class FedAvg(_Settings):
    """The mean of the weights, weighted by examples. McMahan et al., AISTATS 2017."""

    individual_updates: ClassVar[bool] = False

    def build(self) -> Strategy:
        """Flower's, with its mean taken on tensors."""
        from fedsim.server.averaging import TensorFedAvg

        return TensorFedAvg(**_EVERYONE)


@dataclass(frozen=True)
class FedAvgM(_Settings):
    """FedAvg with momentum on the server. Hsu et al. 2019."""

    individual_updates: ClassVar[bool] = False
    server_learning_rate: Positive = 1.0
    server_momentum: OpenFraction = 0.9


@dataclass(frozen=True)
class FedAdam(_Settings):
    """Adam on the server. Reddi et al., ICLR 2021. eta: its step; tau: its degree of adaptivity."""

    individual_updates: ClassVar[bool] = False
    eta: Positive = 0.01
    beta_1: OpenFraction = 0.9
    beta_2: OpenFraction = 0.99
    tau: Positive = 0.001


@dataclass(frozen=True)
class FedYogi(_Settings):
    """Yogi on the server. Reddi et al., ICLR 2021."""

    individual_updates: ClassVar[bool] = False
    eta: Positive = 0.01
    beta_1: OpenFraction = 0.9
    beta_2: OpenFraction = 0.99
    tau: Positive = 0.001


@dataclass(frozen=True)
class FedAdagrad(_Settings):
    """Adagrad on the server. Reddi et al., ICLR 2021."""

    individual_updates: ClassVar[bool] = False
    eta: Positive = 0.1
    tau: Positive = 0.001


@dataclass(frozen=True)
class FedMedian(_Settings):
    """The coordinate-wise median. Yin et al., ICML 2018."""


@dataclass(frozen=True)
class FedTrimmedAvg(_Settings):
    """The coordinate-wise mean without the `beta` fraction at either end. Yin et al., ICML 2018."""

    beta: Annotated[float, Field(ge=0, lt=0.5)] = 0.2


@dataclass(frozen=True)
class _ByDistance(_Settings):
    # Flower takes distances between weights as |a|^2 + |b|^2 - 2ab. Weights differ by a small step only, and in float32
    # that difference is lost in the rounding of the squares, so that the choice would be random.
    double_precision: ClassVar[bool] = True

    num_malicious_nodes: Index = 0


@dataclass(frozen=True)
class Krum(_ByDistance):
    """The one update nearest to its neighbours. Blanchard et al., NeurIPS 2017; needs n >= 2f + 3 clients."""

    def check_clients(self, count: int) -> str | None:
        """n >= 2f + 3."""
        return _enough("krum", 2, self.num_malicious_nodes, count)


@dataclass(frozen=True)
class MultiKrum(_ByDistance):
    """The mean of the `num_nodes_to_select` updates nearest to their neighbours. Blanchard et al., NeurIPS 2017."""

    num_nodes_to_select: Count = 3

    def check_clients(self, count: int) -> str | None:
        """n >= 2f + 3, and no more are selected than there are."""
        if self.num_nodes_to_select > count:
            return f"num_nodes_to_select = {self.num_nodes_to_select}, but only {count} clients train in a round"
        return _enough("multikrum", 2, self.num_malicious_nodes, count)


@dataclass(frozen=True)
class Bulyan(_ByDistance):
    """Krum, then a trimmed mean. El Mhamdi et al., ICML 2018; needs n >= 4f + 3 clients."""

    def check_clients(self, count: int) -> str | None:
        """n >= 4f + 3."""
        return _enough("bulyan", 4, self.num_malicious_nodes, count)


def _enough(name: str, factor: int, malicious: int, count: int) -> str | None:
    least = factor * malicious + 3
    if count >= least:
        return None
    return (
        f"{name} with num_malicious_nodes = {malicious} needs at least {least} clients a round "
        f"({factor}f + 3), but {count} train"
    )
