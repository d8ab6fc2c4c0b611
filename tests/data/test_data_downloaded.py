from __future__ import annotations

import hashlib
import pickle
import socket
import struct
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.data import downloaded
from fedsim.errors import DataUnavailable


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """No connection is made; what is returned lists the time limit that held for each attempt."""
    limits: list[float | None] = []

    def refuse(*_: Any, **__: Any) -> None:
        limits.append(socket.getdefaulttimeout())
        raise urllib.error.URLError("the cable is cut")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return limits


def write_mnist(folder: Path, train: int = 6, test: int = 3) -> None:
    """The format of yann.lecun.com/exdb/mnist: a magic number, the sizes, the bytes."""
    folder.mkdir(parents=True)
    for part, count in (("train", train), ("t10k", test)):
        pixels = np.arange(count * 28 * 28, dtype=np.int64).astype(np.uint8)
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = bytes(range(count))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels)


@pytest.mark.parametrize("settings", [downloaded.MNIST, downloaded.FashionMNIST])
def test_mnist_from_files(tmp_path: Path, settings: Any, no_network: list[float | None]) -> None:
    write_mnist(tmp_path / settings.of_torchvision / "raw")
    data = settings(root=str(tmp_path)).load()
    assert data.name == settings.name
    assert data.shape == (1, 28, 28) and data.classes == 10
    assert (len(data.train), len(data.test)) == (6, 3)
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.train.pixels[0, 0, 0, :3].tolist() == [0, 1, 2]
    assert data.normalisation.mean == settings.mean
    assert not no_network


def test_cifar10_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name: str, content: Any) -> str:
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()

    plane = np.arange(1024, dtype=np.int64).astype(np.uint8)
    image = np.concatenate([plane, plane[::-1], np.zeros_like(plane)])
    names = ["plane", "car"]
    # torchvision reads a file only if its sum is the published one.
    lists = {
        "train_list": [["data_batch_1", write("data_batch_1", {"data": np.stack([image] * 2), "labels": [1, 0]})]],
        "test_list": [["test_batch", write("test_batch", {"data": image[None], "labels": [1]})]],
        "meta": {
            "filename": "batches.meta",
            "key": "label_names",
            "md5": write("batches.meta", {"label_names": names}),
        },
    }
    for key, value in lists.items():
        monkeypatch.setattr(CIFAR10, key, value)
    data = downloaded.CIFAR10(root=str(tmp_path), download=False).load()
    assert data.shape == (3, 32, 32) and data.class_names == ("plane", "car")
    assert data.train.labels.tolist() == [1, 0]
    assert data.train.pixels[1].flatten().tolist() == image.tolist()


@pytest.mark.parametrize(
    ("settings", "files"),
    [
        (downloaded.MNIST, "MNIST/raw/"),
        (downloaded.FashionMNIST, "FashionMNIST/raw/"),
        (downloaded.CIFAR10, "cifar-10-batches-py"),
        (downloaded.CIFAR100, "cifar-100-python"),
    ],
)
def test_without_a_network(tmp_path: Path, settings: Any, files: str, no_network: list[float | None]) -> None:
    root = tmp_path / "sets"
    start = time.perf_counter()
    with pytest.raises(DataUnavailable) as caught:
        settings(root=str(root)).load()
    assert time.perf_counter() - start < 5
    message = str(caught.value)
    for part in (settings.name, str(root), "the cable is cut", files, "npz or imagefolder", "mnist5k"):
        assert part in message
    assert "\n" not in message
    assert 1 <= len(no_network) <= 4
    assert set(no_network) == {downloaded.SILENCE_S}  # a silent network is given up, too
    assert socket.getdefaulttimeout() is None
    assert not root.exists()  # nothing is left that looks like a data set


def test_download_switched_off(tmp_path: Path, no_network: list[float | None]) -> None:
    with pytest.raises(DataUnavailable, match="download = false"):
        downloaded.MNIST(root=str(tmp_path), download=False).load()
    assert not no_network


def test_a_folder_that_cannot_be_written(tmp_path: Path, no_network: list[float | None]) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataUnavailable, match="fetching it failed: NotADirectoryError"):
        downloaded.MNIST(root=str(tmp_path / "file")).load()


@pytest.mark.parametrize("length", [6, 1000])  # within the header, within the pixels
def test_damaged_files_are_called_damaged(tmp_path: Path, length: int, no_network: list[float | None]) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    file = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(DataUnavailable, match=r"its files are damaged .*delete them"):
        downloaded.MNIST(root=str(tmp_path)).load()
    assert not no_network


def test_where_the_data_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_DATA", "/somewhere")
    assert downloaded.data_folder(None) == Path("/somewhere")
    assert downloaded.data_folder("~/here") == Path("~/here").expanduser()
    monkeypatch.delenv("FEDSIM_DATA")
    assert downloaded.data_folder(None) == Path("~/.cache/fedsim/data").expanduser()
