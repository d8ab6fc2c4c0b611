from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsim import progress
from fedsim.data import folder
from fedsim.data.files import ImageFolder
from fedsim.errors import InputError


def save(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (4, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Two classes, five images each, without a split."""
    for number in range(5):
        save(tmp_path / "pets" / "cat" / f"{number}.png", (10 * number, 0, 0))
        save(tmp_path / "pets" / "dog" / f"{number}.png", (0, 10 * number, 255))
    return tmp_path / "pets"


@pytest.fixture
def split(tmp_path: Path) -> Path:
    for part, count in (("train", 2), ("test", 1)):
        for number in range(count):
            save(tmp_path / "pets" / part / "cat" / f"{number}.png", (50, 100, 150))
            save(tmp_path / "pets" / part / "dog" / f"{number}.JPG", (0, 0, 255))
    return tmp_path / "pets"


def load_error(settings: ImageFolder) -> str:
    with pytest.raises(InputError) as caught:
        settings.load()
    return str(caught.value)


def test_train_and_test_folders(split: Path) -> None:
    (split / "train" / "cat" / "notes.txt").write_text("not an image")
    (split / "train" / ".cache").mkdir()
    data = ImageFolder(str(split)).load()
    assert data.name == "pets" and data.class_names == ("cat", "dog") and data.shape == (3, 4, 4)
    assert data.train.labels.tolist() == [0, 0, 1, 1] and data.test.labels.tolist() == [0, 1]
    assert data.train.pixels[0, :, 1, 2].tolist() == [50, 100, 150]
    assert data.normalisation.mean[0] == pytest.approx(25 / 255, abs=0.01)


def test_one_folder_is_split_the_same_way_every_time(flat: Path) -> None:
    data, again = ImageFolder(str(flat)).load(), ImageFolder(str(flat)).load()
    assert sorted(data.train.labels.tolist()) == [0] * 4 + [1] * 4
    assert sorted(data.test.labels.tolist()) == [0, 1]
    assert data.train.pixels.tolist() == again.train.pixels.tolist()
    half = ImageFolder(str(flat), test_fraction=0.5).load()
    assert len(half.test) == 4  # half of five, rounded to the even number


def test_grey(flat: Path) -> None:
    assert ImageFolder(str(flat), channels=1).load().shape == (1, 4, 4)


def test_given_normalisation(flat: Path) -> None:
    data = ImageFolder(str(flat), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)).load()
    assert data.normalisation.mean == (0.5, 0.5, 0.5) and data.normalisation.std == (0.25, 0.25, 0.25)


def test_images_of_two_sizes_need_a_size(flat: Path) -> None:
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, 4:12] = 200  # the centre that a square cut keeps
    Image.fromarray(wide).save(flat / "dog" / "9.png")
    message = load_error(ImageFolder(str(flat)))
    assert "9.png is 16x8 pixels, 0.png is 4x4; set size" in message
    data = ImageFolder(str(flat), size=4).load()
    assert data.shape == (3, 4, 4)
    everything = [*data.train.pixels, *data.test.pixels]
    bright = [image for image in everything if int(image[0].max()) == 200]
    assert len(bright) == 1 and int(bright[0].min()) > 150


def test_reading_reports_progress(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "REPORT_EVERY", 4)
    seen: list[tuple[int, int, str]] = []
    with progress.listening(lambda *report: seen.append(report)):
        ImageFolder(str(flat)).load()
    assert seen == [(4, 10, "reading images"), (8, 10, "reading images")]


def test_a_file_that_is_no_image(flat: Path) -> None:
    (flat / "cat" / "broken.png").write_bytes(b"\x89PNG nonsense")
    assert "broken.png cannot be read as an image" in load_error(ImageFolder(str(flat)))


def test_a_file_that_ends_too_soon(flat: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(flat / "cat" / "cut.png")
    whole = (flat / "cat" / "cut.png").read_bytes()
    (flat / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert "cut.png cannot be read as an image" in load_error(ImageFolder(str(flat)))


def test_sixteen_bits_are_refused_rather_than_clipped(flat: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(flat / "cat" / "deep.png")
    assert "deep.png has more than 8 bits" in load_error(ImageFolder(str(flat), channels=1))


def test_an_empty_class(flat: Path) -> None:
    (flat / "emu").mkdir()
    assert "emu holds no image" in load_error(ImageFolder(str(flat)))


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "0.png", (0, 0, 0))
    assert "1 class folder(s); at least two" in load_error(ImageFolder(str(tmp_path)))


def test_a_test_class_that_was_never_trained(split: Path) -> None:
    save(split / "test" / "dogs" / "0.png", (0, 0, 0))
    assert "dogs: no class of that name in train; did you mean 'dog'?" in load_error(ImageFolder(str(split)))


def test_too_few_images_to_split(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        save(tmp_path / name / "0.png", (0, 0, 0))
    assert "no class has the two images" in load_error(ImageFolder(str(tmp_path)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"path": "nowhere"}, "path: there is no folder nowhere"),
        ({"path": __file__}, "is a file; name the folder"),
        ({"mean": (0.5,)}, "mean, std: give both"),
        ({"mean": (0.5,), "std": (0.5,)}, "mean, std: 1 numbers for 3 channels"),
    ],
)
def test_check(flat: Path, change: dict[str, object], says: str) -> None:
    ImageFolder(str(flat)).check()
    with pytest.raises(InputError, match=says):
        ImageFolder(**{"path": str(flat), **change}).check()  # type: ignore[arg-type]


def test_check_of_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no folder in it; it must hold train/CLASS/"):
        ImageFolder(str(tmp_path)).check()
