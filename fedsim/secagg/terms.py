"""What both sides of an experiment's secure aggregation know before a round, worked out alike by either."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from fedsim import batchnorm, seeding
from fedsim.data.federation import Federation
from fedsim.experiment import Experiment
from fedsim.secagg.base import Layout, Terms
from fedsim.secagg.rounds import drawn, most_examples, most_steps, steps_of


def terms_of(experiment: Experiment, federation: Federation, model: nn.Module) -> Terms:
    """The terms of an experiment; model: as the BatchNorm policy has it built."""
    shares = [len(share) for share in federation.shares]
    return Terms(
        # Which run it is, so that keys and headers of one fit no other.
        seeding.derive(experiment.seed, "secure aggregation", experiment.name),
        drawn(experiment),
        most_examples(experiment) or _power_of_two(max(shares)),
        most_steps(experiment) or max(_epochs(experiment, shares)),
        Layout(
            {name: tuple(value.shape) for name, value in model.named_parameters()},
            batchnorm.expected_shapes(experiment.clients.batchnorm, model),
        ),
    )


def _epochs(experiment: Experiment, shares: Iterable[int]) -> Iterable[int]:
    for client, size in enumerate(shares):
        yield steps_of(experiment.clients.training(client), size)


def _power_of_two(count: int) -> int:
    """The next one: so that the bound, which is public, tells little of the largest client."""
    return 1 << (count - 1).bit_length()


def public_facts(settings: Any, terms: Terms) -> dict[str, Any]:
    """What anybody knows of the sums, as JSON data."""
    return {
        **settings.facts(terms),
        "layout": {
            "update": {name: list(shape) for name, shape in terms.layout.update.items()},
            "statistics": {name: list(shape) for name, shape in terms.layout.statistics.items()},
        },
    }
