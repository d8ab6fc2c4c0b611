"""What a client reads out of a train request; what cannot be one is refused by name, and nothing is trained."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from fedsim import batchnorm, protocol
from fedsim.clients.workbench import workbench
from fedsim.errors import ProtocolError
from fedsim.experiment import Experiment
from fedsim.reading import read_tensors
from fedsim.secagg.base import RECORD

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TrainRequest:
    """round: from 1 on. parameters: the global model. statistics: its BatchNorm statistics, under a policy that has the
    server send any.
    """

    round: int
    parameters: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor]

    @classmethod
    def read(cls, content: RecordDict, experiment: Experiment) -> TrainRequest:
        """Raises ProtocolError."""
        parameters, statistics = _shapes(experiment)
        return cls(
            round_of(content),
            read_tensors(content, protocol.ARRAYS, parameters),
            read_tensors(content, protocol.BUFFERS, statistics) if statistics or protocol.BUFFERS in content else {},
        )


def round_of(content: RecordDict) -> int:
    """The round of a train request, in the record of the strategy's settings, whose name is the strategy's choice.

    Raises ProtocolError.
    """
    for name, record in content.items():
        if name != RECORD and isinstance(record, ConfigRecord):
            number = record.get(protocol.ROUND)
            if type(number) is not int or number < 1:
                raise ProtocolError(f"{name}/{protocol.ROUND} is not the number of a round")
            return number
    raise ProtocolError(f"the record that holds '{protocol.ROUND}' is missing")


@functools.lru_cache(maxsize=2)
def _shapes(experiment: Experiment) -> tuple[Shapes, Shapes]:
    """Of the parameters, and of the statistics that come with them."""
    place = workbench(experiment)
    sent = batchnorm.broadcast(experiment.clients.batchnorm, place.initial_statistics)
    return (
        {name: tuple(value.shape) for name, value in place.model.named_parameters()},
        {name: tuple(value.shape) for name, value in sent.items()},
    )
