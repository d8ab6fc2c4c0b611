from __future__ import annotations

import numpy as np
import torch

from fedsim.data.embedded import Digits, MNIST5k
from fedsim.data.splitting import stratified


def test_mnist5k() -> None:
    data = MNIST5k().load()
    assert data.name == "mnist5k" and data.shape == (1, 28, 28) and data.classes == 10
    assert data.train.labels.bincount().tolist() == [400] * 10
    assert data.test.labels.bincount().tolist() == [100] * 10
    assert int(data.train.pixels.max()) == 255
    # The digits in the package are near MNIST as a whole, whose usual normalisation they get.
    normalised = data.normalisation(data.train.batch(range(4000)).images)
    assert abs(float(normalised.mean())) < 0.01 and abs(float(normalised.std()) - 1) < 0.01
    # Labels still belong to their images: zeros are hollow, ones are not.
    centre = data.train.pixels[:, 0, 12:16, 12:16].float().mean(dim=(1, 2))
    assert float(centre[data.train.labels == 1].mean()) > 5 * float(centre[data.train.labels == 0].mean())


def test_mnist5k_is_the_same_every_time_with_no_image_on_both_sides() -> None:
    first, again = MNIST5k().load(), MNIST5k().load()
    assert torch.equal(first.train.pixels, again.train.pixels)
    # Pinned: another split would change every number that was ever measured on it.
    assert first.train.labels[:12].tolist() == [7, 1, 3, 3, 7, 7, 1, 1, 7, 3, 6, 3]
    assert first.test.labels[:12].tolist() == [2, 8, 4, 5, 4, 9, 2, 6, 9, 8, 8, 1]
    train = {image.numpy().tobytes() for image in first.train.pixels}
    assert len(train) == 4000
    assert not train & {image.numpy().tobytes() for image in first.test.pixels}


def test_digits() -> None:
    data = Digits().load()
    assert data.shape == (1, 8, 8) and data.classes == 10
    assert len(data.train) + len(data.test) == 1797
    assert len(data.train.pixels.unique()) == 17
    normalised = data.normalisation(data.train.batch(range(len(data.train))).images)
    assert abs(float(normalised.mean())) < 1e-4 and abs(float(normalised.std()) - 1) < 1e-3


def test_stratified_split_by_hand() -> None:
    labels = np.array([0] * 10 + [1] * 2 + [2])
    train, test = stratified(labels, 0.2, "test")
    assert sorted([*train, *test]) == list(range(13))
    assert np.bincount(labels[train], minlength=3).tolist() == [8, 1, 1]
    assert np.bincount(labels[test], minlength=3).tolist() == [2, 1, 0]
    again, _ = stratified(labels, 0.2, "test")
    other, _ = stratified(labels, 0.2, "another set")
    assert train.tolist() == again.tolist() != other.tolist()
