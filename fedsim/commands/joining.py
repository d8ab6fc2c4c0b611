"""How a command joins the Ray cluster that an experiment asks for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsim.cluster.connecting import Cluster
    from fedsim.experiment import Experiment


@contextmanager
def cluster_of(experiment: Experiment, *, wanted: bool = True) -> Iterator[Cluster | None]:
    """The cluster that an experiment asks for, for the length of a block; None where it asks for none. torch is
    imported meanwhile: the one waits for processes to start, the other for the disk.
    """
    if experiment.runtime.grid == "inline" or not wanted:
        yield None
        return
    from fedsim.cluster.connecting import connected, ray_module

    ray_module()
    importing = threading.Thread(target=import_module, args=("fedsim.simulation",), daemon=True)
    importing.start()
    with connected(experiment.runtime.ray) as cluster:
        importing.join()
        yield cluster
