"""Setting some examples of each class aside for testing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.seeding import numpy_generator

if TYPE_CHECKING:
    import numpy as np


def stratified(labels: np.ndarray, test_fraction: float, purpose: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices (int64) of the training and of the test examples, in random order.

    The same share of every class, rounded, goes to the test set; a class of two examples or more keeps at
    least one on either side. The draw depends on `purpose` (the data set's name) and on nothing else: the
    split stays the same whatever seed an experiment has, so that results of different seeds are on the same
    test set.
    """
    import numpy as np

    rng = numpy_generator(0, "split", purpose)
    train, test = [], []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        aside = round(test_fraction * len(members))
        if len(members) > 1:
            aside = min(max(aside, 1), len(members) - 1)
        test.append(members[:aside])
        train.append(members[aside:])
    # Mixed, so that the first images of a set are not all of one class.
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(test))
