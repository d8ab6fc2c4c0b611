"""How labels fall in random batches: figure 2a of Huang et al. (NeurIPS 2021).

Attacks that infer labels, or take them to be all different, stand or fall by this.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fedsim.errors import InputError
from fedsim.experiment import Component, Experiment
from fedsim.sweeps.words import Labels

if TYPE_CHECKING:
    import numpy as np


def count(labels: np.ndarray, batch: int, draws: int, rng: np.random.Generator) -> dict[str, float]:
    """Over `draws` random batches of the labels (N,), each without replacement: `distinct_share`, the share of batches
    whose labels all differ, and `commonest_mean`, how many of a batch's images have its commonest label, on average.
    """
    import numpy as np

    classes = int(labels.max()) + 1
    counts = np.empty((draws, classes), dtype=np.int64)
    for place in range(draws):
        chosen = rng.choice(len(labels), size=batch, replace=False, shuffle=False)
        counts[place] = np.bincount(labels[chosen], minlength=classes)
    commonest = counts.max(axis=1)
    return {"distinct_share": float((commonest == 1).mean()), "commonest_mean": float(commonest.mean())}


def lines(settings: Labels, experiments: Iterable[Experiment]) -> list[dict[str, Any]]:
    """A row for each data set of the experiments and each size of batch. Loads the data.

    Raises InputError for batches that a data set is too small for.
    """
    from fedsim.data.federation import load_data
    from fedsim.seeding import numpy_generator

    seeds: dict[Component, int] = {}
    for one in experiments:
        seeds.setdefault(one.data.dataset, one.seed)
    out = []
    for dataset, seed in seeds.items():
        data = load_data(dataset.settings)
        labels = data.train.labels.numpy()
        for batch in settings.batches:
            if batch > len(labels):
                raise InputError(
                    f"labels.batches: {batch} is more than the {len(labels)} training images of {data.name}; "
                    "leave it out"
                )
            found = count(labels, batch, settings.draws, numpy_generator(seed, "labels of batches", batch))
            out.append({"label": data.name, "batch": batch, **found, "draws": settings.draws})
    return out
