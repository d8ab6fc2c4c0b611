"""What recipes share: words for what does not fit, and the job of a single observation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsim.adversaries.base import Job, Observation, Situation

GRADIENT = frozenset({"global_model", "update", "num_examples"})
"""What every gradient inversion needs."""


def one_job(seen: Observation) -> Iterable[Job]:
    """A job for each observation."""
    from fedsim.adversaries.base import Job

    yield Job((seen,))


def several_steps(situation: Situation) -> str | None:
    """The objection of an attack that reads one gradient against updates of several local steps."""
    if situation.one_gradient:
        return None
    return (
        "it reads one gradient, but the clients send what several local steps came to; "
        'use algorithm = "fedsgd", or an attack on FedAvg such as geiping_fedavg'
    )


def several_images(situation: Situation) -> str | None:
    """The objection of an attack that works on a batch of one image alone."""
    if situation.aggregate and len(situation.batch_sizes) > 1:
        return f"it works on one image, but the sum of {len(situation.batch_sizes)} clients' updates holds more"
    large = max(situation.batch_sizes, default=1)
    if large == 1:
        return None
    return f"it works on one image, but a targeted client's batch_size is {large}; set it to 1 for that client"
