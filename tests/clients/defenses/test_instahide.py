from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import check_refused, document, entry
from mixers import CLASSES, client, pool, rng

from fedsim.clients.defenses.instahide import InstaHide
from fedsim.clients.defenses.mixup import MixUp
from fedsim.clients.defenses.public import data_set, public_images
from fedsim.errors import InputError, SettingError


def archive(folder: Path, shape: tuple[int, ...] = (3, 6, 6), count: int = 40) -> str:
    """Public images, as a data set that an experiment can name."""
    pixels = np.random.default_rng(5).integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = np.arange(count) % 2
    file = folder / "public.npz"
    np.savez(file, x_train=pixels, y_train=labels, x_test=pixels[:2], y_test=labels[:2])
    return f"npz:{file}"


@pytest.mark.parametrize("k", [2, 4, 6])
@pytest.mark.parametrize("positions", [[7], [3, 0, 29, 11, 4]], ids=["one image", "five"])
def test_the_magnitudes_are_those_of_the_mixture_of_normalised_images(k: int, positions: list[int]) -> None:
    everything = client()
    batch, whole = pool(everything, positions)
    mixed = InstaHide(k=k).mix(batch, whole, rng())
    wanted = torch.zeros_like(batch.images)
    labels = torch.zeros(len(positions), CLASSES)
    for place in range(k):
        share = mixed.coefficients[:, place]
        there = whole.take(mixed.indices[:, place])
        wanted += share[:, None, None, None] * whole.normalise(there.images)
        labels[torch.arange(len(positions)), there.labels] += share
    found = whole.normalise(mixed.batch.images)
    torch.testing.assert_close(found.abs(), wanted.abs(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed.batch.labels, labels)
    assert mixed.indices[:, 0].tolist() == positions
    torch.testing.assert_close(mixed.coefficients.sum(1), torch.ones(len(positions)))
    kept = (found * wanted > 0).double().mean()
    assert abs(kept - 0.5) < 5 * 0.5 / found.numel() ** 0.5


def test_what_mixup_would_mix_but_for_the_signs() -> None:
    batch, whole = pool(client(), [3, 4])
    plain, hidden = (defense.mix(batch, whole, rng(9)) for defense in (MixUp(), InstaHide()))
    assert torch.equal(plain.indices, hidden.indices) and torch.equal(plain.batch.labels, hidden.batch.labels)
    assert hidden.batch.images.min() < 0
    torch.testing.assert_close(
        whole.normalise(hidden.batch.images).abs(), whole.normalise(plain.batch.images).abs(), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("grey", [False, True])
def test_public_images_are_mixed_in_but_their_labels_are_not(tmp_path: Path, grey: bool) -> None:
    name = archive(tmp_path, (1, 6, 6) if grey else (3, 6, 6))
    everything = client()
    positions = list(range(20))
    batch, whole = pool(everything, positions)
    defense = InstaHide(k=5, law="half_normal", public=name)
    defense.check()
    mixed = defense.mix(batch, whole, rng())
    assert mixed.indices[:, 0].tolist() == positions
    assert (mixed.indices[:, 1] >= 0).all() and (mixed.indices[:, 1] != mixed.indices[:, 0]).all()
    assert (mixed.indices[:, 2:] == -1).all() and mixed.indices.shape == (20, 5)
    torch.testing.assert_close(mixed.coefficients.sum(1), torch.ones(20))
    # The labels' weights are the two private coefficients as drawn.
    shares = mixed.coefficients[:, :2]
    labels = torch.zeros(20, CLASSES)
    for place in range(2):
        labels[torch.arange(20), everything.labels[mixed.indices[:, place]]] += shares[:, place]
    torch.testing.assert_close(mixed.batch.labels, labels)
    assert mixed.batch.labels.sum(1).min() >= 0.3 and mixed.batch.labels.sum(1).max() < 1
    # Which public images were drawn is not told. That three different ones explain the first row's magnitudes, and no
    # other choice does, is found by trying all there are on a few pixels.
    public = public_images(name).batch(range(40)).images.expand(-1, 3, -1, -1)
    own = torch.einsum("j,jchw->chw", shares[0], everything.images[mixed.indices[0, :2]])
    three = torch.cartesian_prod(*[torch.arange(40)] * 3)
    corner = public[:, :, 0, :4].flatten(1)
    tries = own[:, 0, :4].flatten() + torch.einsum("j,njp->np", mixed.coefficients[0, 2:], corner[three])
    mean, std = torch.tensor(whole.normalise.mean), torch.tensor(whole.normalise.std)
    tries = (tries - mean.repeat_interleave(4)) / std.repeat_interleave(4)
    seen = whole.normalise(mixed.batch.images)[0, :, 0, :4].flatten().abs()
    misses = (tries.abs() - seen).abs().amax(1)
    assert (misses < 1e-4).sum() == 1
    assert len(set(three[misses.argmin()].tolist())) == 3


def test_the_same_generator_gives_the_same_bits(tmp_path: Path) -> None:
    batch, whole = pool(client(), [1, 2, 3])
    for defense in (InstaHide(), InstaHide(public=archive(tmp_path))):
        first, again, other = (defense.mix(batch, whole, rng(seed)).batch.images for seed in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)


def test_how_many_images_a_client_needs() -> None:
    assert InstaHide(k=6).images_needed() == 6
    assert InstaHide(k=6, public="digits").images_needed() == 2
    batch, whole = pool(client(3), [0])
    with pytest.raises(InputError, match=r"defense instahide: a client has 3 image.* mixes 4 different"):
        InstaHide().mix(batch, whole, rng())


def test_two_images_of_its_own_are_enough_with_public_ones(tmp_path: Path) -> None:
    batch, whole = pool(client(2), [0, 1])
    mixed = InstaHide(k=6, public=archive(tmp_path, count=4)).mix(batch, whole, rng())
    assert mixed.indices.tolist() == [[0, 1, -1, -1, -1, -1], [1, 0, -1, -1, -1, -1]]
    with pytest.raises(InputError, match=r"has 4 training image\(s\), but 5 are mixed; lower k"):
        InstaHide(k=7, public=archive(tmp_path, count=4)).mix(batch, whole, rng())


@pytest.mark.parametrize(("theirs", "ours"), [((3, 6, 5), (3, 6, 6)), ((3, 6, 6), (1, 6, 6))])
def test_public_images_of_another_size_are_refused(tmp_path: Path, theirs: Any, ours: Any) -> None:
    batch, whole = pool(client(5, ours), [0])
    words = "are {} .*, the private ones {}; .*npz".format(*("x".join(map(str, shape)) for shape in (theirs, ours)))
    with pytest.raises(InputError, match=words.replace(" .*,", ",")):
        InstaHide(public=archive(tmp_path, theirs)).mix(batch, whole, rng())


def test_public_images_are_loaded_once(tmp_path: Path) -> None:
    name = archive(tmp_path)
    images = public_images(name)
    (tmp_path / "public.npz").unlink()
    assert public_images(name) is images


@pytest.mark.parametrize(
    ("public", "words"),
    [
        ("digit", "no data set is called 'digit'; did you mean 'digits'?"),
        ("npz", "reads files; say which, as in 'npz:PATH'"),
        ("digits:here", "takes no path"),
        ("cifar10:here", "takes no path"),
        ("npz:nowhere.npz", "there is no file nowhere.npz"),
        ("imagefolder:nowhere", "there is no folder nowhere"),
        ("", "no data set is called ''"),
    ],
)
def test_a_public_set_that_is_none_is_refused_on_its_line(
    public: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = document(tail=entry("clients.defenses", {"public": f'"{public}"'}, {"name": '"instahide"'}))
    check_refused(capsys, tmp_path, text, "clients.defenses[0].public", words)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"upper": 0.25}, "upper"),
        ({"k": 2, "public": "digits"}, "k"),
        ({"public": "digits", "private_share": 1.0}, "private_share"),
        ({"public": "digits", "private_share": 0.6, "upper": 0.3}, "private_share"),
    ],
)
def test_bounds_that_contradict_each_other_are_refused(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingError) as caught:
        InstaHide(**settings).check()
    assert caught.value.key == key
    InstaHide(public="digits").check()


def test_any_shipped_data_set_can_be_named() -> None:
    assert data_set("cifar100") == data_set("cifar100")
    assert type(data_set("digits")).__name__ == "Digits"
