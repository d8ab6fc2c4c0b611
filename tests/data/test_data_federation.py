from __future__ import annotations

import pytest
import torch

from fedsim.data import federation as module
from fedsim.data.embedded import Digits
from fedsim.data.federation import Federation, load_data, load_federation
from fedsim.data.partitions import IID, Linear


def test_one_copy_for_everybody() -> None:
    federation = load_federation(Digits(), IID(), 4, 0)
    assert load_federation(Digits(), IID(), 4, 0) is federation
    other = load_federation(Digits(), Linear(), 4, 0)
    assert other is not federation
    assert other.data is federation.data is load_data(Digits())


def test_shares_and_batches() -> None:
    federation = load_federation(Digits(), IID(), 4, 0)
    assert [len(share) for share in federation.shares] == [360, 360, 359, 359]
    assert all(share.dtype == torch.int64 for share in federation.shares)
    batch = federation.batch(2, [0, 5])
    where = federation.shares[2][[0, 5]]
    assert torch.equal(batch.labels, federation.data.train.labels[where])
    assert torch.equal(batch.images * 255, federation.data.train.pixels[where].float())


@pytest.mark.parametrize("limit", [0, 2**26])
def test_normalised_images_are_those_of_the_normalisation_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(module, "READY_BYTES", limit)
    shared = load_federation(Digits(), IID(), 4, 0)
    federation = Federation(shared.data, shared.shares)
    for _ in range(2):  # nothing that is kept is written to
        found, plain = federation.normalised(1, [3, 0, 3]), federation.batch(1, [3, 0, 3])
        assert torch.equal(found.images, shared.data.normalisation(plain.images))
        assert torch.equal(found.labels, plain.labels)
        found.images.zero_()
