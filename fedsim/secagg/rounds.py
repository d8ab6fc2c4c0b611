"""How many clients, examples and steps a round of an experiment can have, as far as its file tells."""

from __future__ import annotations

from math import ceil

from fedsim.experiment import Experiment, LocalTraining


def drawn(experiment: Experiment) -> int:
    """Clients drawn for a round."""
    clients = experiment.clients
    return min(clients.per_round or clients.count, clients.count)


def most_examples(experiment: Experiment) -> int | None:
    """The most that a client weighs: as the file says, or the images of all its steps; None where the data have to
    tell.
    """
    mode, clients = experiment.server.secure_aggregation, experiment.clients
    given: int | None = getattr(mode.settings, "most_examples", None) if mode else None
    if given is None and most_steps(experiment) is not None:
        fedsgd = clients.algorithm == "fedsgd"
        given = max(one.batch_size * (1 if fedsgd else one.local_steps or 1) for one in (clients, *clients.groups))
    return given


def most_steps(experiment: Experiment) -> int | None:
    """The most local steps of a client; None where the data have to tell."""
    clients = experiment.clients
    if clients.algorithm == "fedsgd":
        return 1
    steps = [one.local_steps for one in (clients, *clients.groups)]
    return None if None in steps else max(one for one in steps if one is not None)


def steps_of(training: LocalTraining, size: int) -> int:
    """The local steps (fedavg) of a client with `size` images."""
    return training.local_steps or training.local_epochs * ceil(size / training.batch_size)
