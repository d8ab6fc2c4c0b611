from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.data.files import Npz
from fedsim.errors import InputError


def arrays(**change: Any) -> dict[str, Any]:
    return {
        "x_train": np.arange(4 * 6 * 5 * 3, dtype=np.int64).astype(np.uint8).reshape(4, 6, 5, 3),
        "y_train": np.array([0, 1, 2, 0]),
        "x_test": np.zeros((2, 6, 5, 3), dtype=np.uint8),
        "y_test": np.array([2, 1]),
    } | change


def write(folder: Path, **change: Any) -> Npz:
    np.savez(folder / "set.npz", **{key: value for key, value in arrays(**change).items() if value is not None})
    return Npz(str(folder / "set.npz"))


def test_channels_last(tmp_path: Path) -> None:
    data = write(tmp_path).load()
    assert data.name == "set" and data.shape == (3, 6, 5) and data.class_names == ("0", "1", "2")
    assert data.train.pixels[0, :, 0, 1].tolist() == [3, 4, 5]
    assert data.train.labels.tolist() == [0, 1, 2, 0]
    unit = data.train.batch(range(4)).images
    assert data.normalisation.mean == pytest.approx(unit.mean(dim=(0, 2, 3)).tolist(), abs=1e-6)


def test_channels_first_grey_and_a_column_of_labels(tmp_path: Path) -> None:
    x = arrays()["x_train"]
    first = write(tmp_path, x_train=x.transpose(0, 3, 1, 2), x_test=np.zeros((2, 3, 6, 5), dtype=np.uint8))
    assert first.load().train.pixels[0, :, 0, 1].tolist() == [3, 4, 5]
    grey = write(tmp_path, x_train=x[..., 0], x_test=np.zeros((2, 6, 5)), y_train=np.array([[0], [1], [2], [0]]))
    assert grey.load().shape == (1, 6, 5)
    assert grey.load().train.labels.tolist() == [0, 1, 2, 0]


def test_floating_point_and_wide_integers(tmp_path: Path) -> None:
    x = arrays()["x_train"]
    unit = write(tmp_path, x_train=(x / 255).astype(np.float32)).load()
    assert unit.train.pixels.permute(0, 2, 3, 1).tolist() == x.tolist()
    wide = write(tmp_path, x_train=x.astype(np.int64)).load()
    assert wide.train.pixels.permute(0, 2, 3, 1).tolist() == x.tolist()


def test_given_classes_and_normalisation(tmp_path: Path) -> None:
    path = write(tmp_path).path
    data = Npz(path, classes=10, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)).load()
    assert data.classes == 10 and data.normalisation.std == (0.1, 0.2, 0.3)
    with pytest.raises(InputError, match="1 numbers, but the images have 3 channels"):
        Npz(path, mean=(0.5,), std=(0.5,)).load()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"y_test": None}, r"set\.npz: y_test missing; found: x_test, x_train, y_train"),
        ({"x_train": np.zeros((4, 6), np.uint8)}, r"x_train: has the shape \(4, 6\)"),
        ({"x_train": np.zeros((4, 6, 5, 2), np.uint8)}, r"x_train: has the shape \(4, 6, 5, 2\)"),
        ({"x_test": np.zeros((0, 6, 5, 3), np.uint8)}, "x_test: is empty"),
        ({"x_test": np.zeros((2, 7, 5, 3), np.uint8)}, "x_test: images of 3x7x5, where x_train has 3x6x5"),
        ({"x_train": np.full((4, 6, 5, 3), np.nan)}, "x_train: holds NaN"),
        ({"x_train": np.full((4, 6, 5, 3), 255.0)}, r"x_train: .*255.0; floating-point pixels run from 0 to 1"),
        ({"x_train": np.full((4, 6, 5, 3), -1)}, "x_train: .*from -1 to -1; whole-number pixels run from 0"),
        ({"x_train": np.full((4, 6, 5, 3), "a")}, "x_train: is of type <U1"),
        ({"x_train": np.full((4, 6, 5, 3), {})}, "x_train: cannot be read"),
        ({"y_train": np.array([0, 1, 2])}, r"y_train: has the shape \(3,\); one label an image, \(4,\)"),
        ({"y_train": np.array([0.0, 1, 2, 0])}, "y_train: is of type float64"),
        ({"y_train": np.array([-1, 1, 2, 0])}, "y_train: holds labels from -1 to 2; 0 on expected"),
        ({"y_train": np.array([0, 0, 0, 0])}, "y_train: only the label 0"),
        ({"y_test": np.array([3, 0])}, "y_test: holds labels from 0 to 3; 0 to 2 expected"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    settings = write(tmp_path, **change)
    with pytest.raises(InputError, match=says):
        settings.load()


def test_a_damaged_archive(tmp_path: Path) -> None:
    settings = write(tmp_path)
    raw = bytearray(Path(settings.path).read_bytes())
    raw[200:210] = b"0123456789"
    Path(settings.path).write_bytes(raw)
    with pytest.raises(InputError, match=r"x_train: is damaged"):
        settings.load()


def test_check(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    for path, says in (
        ("nowhere.npz", "there is no file nowhere.npz"),
        (str(tmp_path), "is a folder; name an .npz file"),
        (str(tmp_path / "text.npz"), "is not an .npz file"),
    ):
        with pytest.raises(InputError, match=says):
            Npz(path).check()
    with pytest.raises(InputError, match="mean, std: give both"):
        Npz(write(tmp_path).path, std=(0.5,)).check()


def test_real_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.environ.get("FEDSIM_DATA")
    file = Path(folder or "", "cifar10_head.npz")
    if not folder or not file.exists():
        pytest.skip("FEDSIM_DATA names no folder with cifar10_head.npz")
    data = Npz(str(file), mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)).load()
    assert data.shape == (3, 32, 32) and data.classes == 10
    assert (len(data.train), len(data.test)) == (5085, 1017)
    # The first image of the first training batch is a frog (6), of the test batch a cat (3).
    assert int(data.train.labels[0]) == 6 and int(data.test.labels[0]) == 3
    mean = data.train.batch(range(5085)).images.mean(dim=(0, 2, 3))
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.02)
