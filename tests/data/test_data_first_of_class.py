from __future__ import annotations

import numpy as np
import pytest

from fedsim.data.embedded import Digits
from fedsim.data.federation import load_federation
from fedsim.data.partitions import FirstOfClass
from fedsim.errors import InputError

LABELS = np.array([2, 0, 0, 1, 2, 1, 0, 2, 2, 1, 1, 0])


def test_client_0_gets_the_first_of_each_class_by_hand() -> None:
    (only,) = FirstOfClass(per_class=2).split(LABELS, 1, 0)
    assert only.tolist() == [0, 1, 2, 3, 4, 5] and only.dtype == np.int64
    assert FirstOfClass(per_class=1).split(LABELS, 1, 0)[0].tolist() == [0, 1, 3]
    assert FirstOfClass(per_class=3).split(LABELS, 1, 0)[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9]


@pytest.mark.parametrize("clients", [2, 3, 4, 7])
def test_the_others_share_the_rest_equally(clients: int) -> None:
    shares = FirstOfClass(per_class=2).split(LABELS, clients, 0)
    assert shares[0].tolist() == [0, 1, 2, 3, 4, 5]
    sizes = [len(share) for share in shares[1:]]
    assert sum(sizes) == 6 and max(sizes) - min(sizes) <= 1
    assert sorted(np.concatenate(shares)) == list(range(12))
    assert all(share.dtype == np.int64 and (np.diff(share) > 0).all() for share in shares)


def test_only_the_rest_depends_on_the_seed() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 500)
    first, again, other = (FirstOfClass().split(labels, 4, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert np.array_equal(first[0], other[0]) and len(first[0]) == 50
    assert not np.array_equal(first[1], other[1])


def test_a_class_with_too_few_is_named() -> None:
    with pytest.raises(InputError, match=r"first_of_class: class 1 has 4 of the 5 .* lower per_class"):
        FirstOfClass(per_class=5).split(np.r_[LABELS, 2, 2, 0], 1, 0)


def test_more_clients_than_the_rest_has_examples() -> None:
    assert len(FirstOfClass(per_class=2).split(LABELS, 7, 0)) == 7
    with pytest.raises(InputError, match=r"12 examples leave 6 for 7 clients beside client 0; take fewer"):
        FirstOfClass(per_class=2).split(LABELS, 8, 0)
    with pytest.raises(InputError, match="leave 0 for 1 clients"):
        FirstOfClass(per_class=4).split(LABELS, 2, 0)


def test_a_federation_holds_them() -> None:
    federation = load_federation(Digits(), FirstOfClass(per_class=3), 2, 0)
    labels = federation.batch(0, range(30)).labels
    assert np.bincount(labels.numpy()).tolist() == [3] * 10
