"""A masked vector, decoded as if there were no mask: the arithmetic is right, and its outcome says nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from summing import LAYOUT, MODEL, codec_for, contribution, summed

from fedsim.adversaries.base import Observation
from fedsim.adversaries.derivations.masked import Masked


def link(ring: np.ndarray, **facts: Any) -> Observation:
    """What the link of client 3 shows of a vector."""
    public = summed({3: contribution(3)}, codec_for(4)).facts["secure_aggregation"]
    public = json.loads(json.dumps(public, sort_keys=True))  # as it is stored, which forgets the order of the layout
    seen = {
        "algorithm": "fedsgd",
        "batch_size": 4,
        "batchnorm": "share_batch",
        "secure_aggregation": public,
        "granted": ["encrypted_shares", "global_model", "labels", "masked_update", "sizes"],
        **facts,
    }
    vector = torch.from_numpy(ring.view(np.int32).copy())
    tensors = {
        **MODEL,
        "masked/vector": vector,
        "encrypted/1": torch.zeros(3, dtype=torch.uint8),
        "known/labels": torch.zeros(4, dtype=torch.int64),
    }
    return Observation(2, 3, "link", tensors, seen)


def test_without_a_mask_it_would_be_the_update() -> None:
    """So that what hides the update is the mask, and not a mistake in reading."""
    own = contribution(3, examples=4)
    codec = codec_for(4)
    (one,) = Masked().derive([link(codec.encode(own))]).observations
    for name, value in own.update.items():
        torch.testing.assert_close(one.tensors[f"update/{name}"], value, rtol=0, atol=1 / codec.scale)
    for name, value in own.statistics.items():
        torch.testing.assert_close(
            one.tensors[f"sent_buffers/{name}"], value, rtol=1e-6, atol=1 / codec.statistics_scale
        )
    assert (one.client, one.round, one.facts["num_examples"], one.facts["num_steps"]) == (3, 2, 4, 1)
    assert one.facts["granted"] == ["global_model", "labels", "num_examples", "update"]
    assert not [name for name in one.tensors if name.startswith(("masked/", "encrypted/"))]
    assert one.tensors["known/labels"].tolist() == [0] * 4, "the link shows one client, and they are its own"


def test_with_a_mask_it_is_spread_over_the_whole_range() -> None:
    own, codec = contribution(3, examples=4, size=0.01), codec_for(4)
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 2**32, (400, codec.size), dtype=np.uint32)
    found = Masked().derive([link(codec.encode(own) + mask) for mask in masks]).observations
    values = torch.stack([one.tensors["update/w"].flatten() for one in found])
    # Uniform between the largest possible sums: clip * clients * most examples over the examples taken.
    most = 4.0 * 4 * 8 / 4
    assert float(values.abs().max()) <= most * 1.001
    assert abs(float(values.std()) - most / 3**0.5) < 0.3
    assert float(values.mean(0).abs().max()) < 5 * most / 3**0.5 / 400**0.5
    assert set(LAYOUT.update) == set(found[0].part("update"))


def test_of_local_training_the_most_that_a_client_weighs_is_taken() -> None:
    own, codec = contribution(3, examples=8), codec_for(4)
    (one,) = Masked().derive([link(codec.encode(own), algorithm="fedavg")]).observations
    assert one.facts["num_examples"] == 8
    torch.testing.assert_close(one.tensors["update/w"], own.update["w"], rtol=0, atol=1 / codec.scale)


def test_without_ring_elements_there_is_nothing() -> None:
    seen = link(codec_for(4).encode(contribution(3)))
    tensors = {**MODEL, "masked/ciphertext": torch.zeros(9, dtype=torch.uint8)}
    found = Masked().derive([Observation(1, 3, "link", tensors, seen.facts)])
    assert (found.observations, found.notes) == ((), ("no masked vector of ring elements was shown",))
