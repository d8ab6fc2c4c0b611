"""How the apps find their experiment when Flower runs them (`flwr run`), instead of a simulation of ours."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from fedsim.errors import InputError
from fedsim.experiment import Experiment
from fedsim.experiment_file import read

if TYPE_CHECKING:
    from flwr.app import Context

KEY = "experiment"
"""The key in Flower's run configuration: an experiment file's path, or the name of one that ships with fedsim."""


def experiment_of(context: Context) -> Experiment:
    """The experiment that the run configuration names."""
    name = context.run_config.get(KEY)
    if not isinstance(name, str) or not name:
        raise InputError(
            f"Flower's run configuration has no '{KEY}'; name an experiment, "
            f"as in `flwr run . --run-config '{KEY}=\"quickstart\"'`"
        )
    return _read(name)


@functools.cache
def _read(name: str) -> Experiment:
    return read(name)
