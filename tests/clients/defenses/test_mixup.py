from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import check_refused, document, entry
from mixers import CLASSES, client, pool, rng

from fedsim.clients.defenses.mixup import MixUp
from fedsim.errors import InputError, SettingError
from fedsim.protocol import Batch


@pytest.mark.parametrize("law", ["dirichlet", "half_normal"])
@pytest.mark.parametrize("k", [2, 4, 6])
@pytest.mark.parametrize("positions", [[7], [3, 0, 29, 11, 4]], ids=["one image", "five"])
def test_images_and_labels_are_the_mixture_that_it_says(law: Any, k: int, positions: list[int]) -> None:
    everything = client()
    batch, whole = pool(everything, positions)
    mixed = MixUp(k=k, law=law).mix(batch, whole, rng())
    assert mixed.indices.dtype == torch.int64 and mixed.coefficients.dtype == torch.float32
    assert mixed.indices.shape == mixed.coefficients.shape == (len(positions), k)
    assert mixed.indices[:, 0].tolist() == positions
    assert all(len(set(row)) == k for row in mixed.indices.tolist())
    assert mixed.coefficients.max() <= 0.65
    torch.testing.assert_close(mixed.coefficients.sum(1), torch.ones(len(positions)))
    images, labels = torch.zeros_like(batch.images), torch.zeros(len(positions), CLASSES)
    for row, (chosen, shares) in enumerate(zip(mixed.indices, mixed.coefficients, strict=True)):
        for position, share in zip(chosen, shares, strict=True):
            images[row] += share * whole.take(position[None]).images[0]
            labels[row, everything.labels[position]] += share
    torch.testing.assert_close(mixed.batch.images, images)
    torch.testing.assert_close(mixed.batch.labels, labels)
    assert mixed.batch.labels.dtype == torch.float32
    assert mixed.batch.images.min() >= 0 and mixed.batch.images.max() <= 1


def test_the_same_generator_gives_the_same_bits() -> None:
    batch, whole = pool(client(), [1, 2, 3])
    first, again, other = (MixUp().mix(batch, whole, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.batch.images, again.batch.images)
    assert torch.equal(first.indices, again.indices) and torch.equal(first.coefficients, again.coefficients)
    assert not torch.equal(first.indices, other.indices)
    assert not torch.equal(first.coefficients, other.coefficients)


def test_what_it_is_given_stays_as_it_is() -> None:
    everything = client()
    before = everything.images.clone()
    batch, whole = pool(everything, [1, 2])
    given = batch.images.clone()
    MixUp().mix(batch, whole, rng())
    assert torch.equal(everything.images, before) and torch.equal(batch.images, given)


def test_an_encoding_that_came_before_is_kept() -> None:
    """The own image is the one in the batch, with the label that it has there, which may already be soft."""
    batch, whole = pool(client(), [1])
    changed = Batch(torch.full_like(batch.images, 100.0), torch.full((1, CLASSES), 1 / CLASSES))
    mixed = MixUp(k=2).mix(changed, whole, rng())
    own = mixed.coefficients[0, 0]
    other = whole.take(mixed.indices[0, 1:])
    torch.testing.assert_close(mixed.batch.images, 100 * own + (1 - own) * other.images)
    torch.testing.assert_close(mixed.batch.labels.sum(), torch.tensor(1.0))
    assert (mixed.batch.labels > 0).all()


def test_a_client_with_exactly_k_images_mixes_all_of_them_and_one_with_fewer_is_told() -> None:
    batch, whole = pool(client(4), [2, 0])
    mixed = MixUp(k=4).mix(batch, whole, rng())
    assert [sorted(row) for row in mixed.indices.tolist()] == [[0, 1, 2, 3]] * 2
    assert MixUp(k=4).images_needed() == 4
    batch, whole = pool(client(3), [2, 0])
    with pytest.raises(InputError, match=r"defense mixup: a client has 3 .* mixes 4 different .*; lower k, or give"):
        MixUp(k=4).mix(batch, whole, rng())


def test_an_impossible_bound_is_refused_on_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingError):
        MixUp(k=2, upper=0.5).check()
    MixUp(k=2, upper=0.51).check()
    text = document(tail=entry("clients.defenses", {"upper": "0.2"}, {"name": '"mixup"'}))
    check_refused(capsys, tmp_path, text, "clients.defenses[0].upper", "4 coefficients", "above 1/4")


def test_settings_import_nothing_heavy() -> None:
    modules = ("mixup", "instahide")
    code = (
        f"import sys, {', '.join(f'fedsim.clients.defenses.{module}' for module in modules)}\n"
        "fedsim.clients.defenses.mixup.MixUp().check()\n"
        "fedsim.clients.defenses.instahide.InstaHide(public='mnist5k').check()\n"
        "print([name for name in ('torch', 'numpy', 'flwr', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
