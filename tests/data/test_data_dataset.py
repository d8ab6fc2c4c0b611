from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fedsim.data.dataset import ImageData, Images, Normalisation, measure

NORMALISATION = Normalisation((0.5, 0.25, 0.125), (0.25, 0.5, 0.125))


def test_normalisation_by_hand() -> None:
    images = torch.tensor([1.0, 0.75, 0.0]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    assert NORMALISATION(images)[1, :, 3, 4].tolist() == [2.0, 1.0, -1.0]


def test_normalisation_and_back() -> None:
    images = torch.rand(4, 3, 8, 8)
    assert torch.allclose(NORMALISATION.inverse(NORMALISATION(images)), images, atol=1e-6)
    assert NORMALISATION(images.double()).dtype == torch.float64


def test_box_is_the_normalised_black_and_white() -> None:
    low, high = NORMALISATION.box(torch.zeros(1))
    assert low.flatten().tolist() == [-2.0, -0.5, -1.0]
    assert high.flatten().tolist() == [2.0, 1.5, 7.0]
    assert low.shape == high.shape == (1, 3, 1, 1)
    assert torch.equal(NORMALISATION(torch.ones(2, 3, 4, 4)), high.expand(2, 3, 4, 4))


def test_kept_tensors_serve_later_whoever_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.data.dataset._columns", {})  # what other tests asked for
    images = torch.rand(2, 1, 4, 4)
    with FakeTensorMode():
        Normalisation((0.11,), (0.5,))(torch.empty(2, 1, 4, 4))
    assert torch.equal(Normalisation((0.11,), (0.5,))(images), (images - 0.11) / 0.5)

    with torch.inference_mode():
        Normalisation((0.12,), (0.5,))(images)
    asked = images.clone().requires_grad_()
    Normalisation((0.12,), (0.5,))(asked).sum().backward()
    assert asked.grad is not None and float(asked.grad.mean()) == 2.0

    third = Normalisation((0.13,), (0.5,))
    step = torch.compile(torch.func.grad(lambda x: third(x).square().sum()), backend="aot_eager", fullgraph=True)
    assert torch.allclose(step(images), 8 * (images - 0.13), atol=1e-5)
    assert torch.equal(third(images), (images - 0.13) / 0.5)


def images(count: int = 3) -> Images:
    return Images(torch.full((count, 1, 2, 2), 51, dtype=torch.uint8), torch.arange(count))


def test_a_batch_is_in_the_unit_range() -> None:
    batch = images().batch([2, 0])
    assert batch.images.dtype == torch.float32
    assert batch.images.unique().tolist() == [pytest.approx(0.2)]
    assert batch.labels.tolist() == [2, 0]
    white = Images(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    assert float(white.batch(torch.tensor([0])).images.max()) == 1.0
    assert len(images().batch(range(3))) == 3


def test_select_copies() -> None:
    some = images()
    chosen = some.select([1])
    chosen.pixels.zero_()
    assert len(chosen) == 1 and int(some.pixels.min()) == 51


def test_images_of_the_wrong_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pixels: uint8 \(N, C, H, W\) expected, not float32 \(3, 1, 2, 2\)"):
        Images(torch.zeros(3, 1, 2, 2), torch.arange(3))
    with pytest.raises(ValueError, match=r"labels: int64 \(3,\) expected, not int64 \(2,\)"):
        Images(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.arange(2))


def test_data_know_their_shape_and_classes() -> None:
    data = ImageData("three", images(), images(1), ("a", "b", "c"), Normalisation((0.0,), (1.0,)))
    assert data.shape == (1, 2, 2)
    assert data.classes == 3


def test_measured_normalisation_is_exact() -> None:
    pixels = torch.randint(0, 256, (50, 3, 6, 6), dtype=torch.uint8)
    pixels[:, 2] = 255
    found = measure(pixels)
    unit = pixels.double() / 255
    assert found.mean == pytest.approx(unit.mean(dim=(0, 2, 3)).tolist())
    assert found.std[:2] == pytest.approx(unit.std(dim=(0, 2, 3), correction=0)[:2].tolist())
    assert found.std[2] == 1.0  # nothing to scale by
