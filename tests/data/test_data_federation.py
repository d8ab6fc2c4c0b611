from __future__ import annotations

import torch

from fedsim.data.embedded import Digits
from fedsim.data.federation import load_data, load_federation
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
