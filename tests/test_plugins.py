"""Components by name: which there are, that only the named one is imported, and what a broken one is answered with."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import ask, document

from fedsim import plugins
from fedsim.errors import InputError

SHIPPED = {
    "adversaries": {"geiping"},
    "datasets": {"mnist5k", "digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "imagefolder", "npz"},
    "defenses": {"gradient_pruning", "gradient_noise", "gradient_clipping"},
    "models": {"convnet6", "lenet", "mlp", "resnet18", "preact_resnet18", "torchvision"},
    "partitions": {"iid", "dirichlet", "shard", "pathological", "linear"},
    "derivations": {"collusion", "differencing", "suppression", "masked", "prying"},
    "secure_aggregations": {"ideal", "secagg+", "ckks"},
    "sinks": {"tensorboard", "mlflow", "wandb"},
    "strategies": {"fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedmedian", "fedtrimmedavg", "krum"},
}
MODULES = {
    # third-party modules, good and bad
    "good": "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Model:\n    'A model.'\n"
    "    size: int = 3\n    batchnorm = False\n",
    "raises": "raise RuntimeError('no licence')",
    "missing": "import a_package_that_nobody_has",
    "no_class": "x = 1",
    "plain": "class Model:\n    'Not a dataclass.'\n",
    "syntax": "def f(:\n",
    "refuses": "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Model:\n    size: int = 3\n"
    "    def __post_init__(self):\n        raise ValueError('size is odd')\n",
    "breaks_in_check": "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Model:\n    size: int = 3\n"
    "    def check(self):\n        raise OSError('the disk is gone')\n",
}


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A package of somebody else's, with a model in each module. A test may bring modules of its own."""
    modules: dict[str, str] = getattr(request, "param", MODULES)
    site = tmp_path / "site"
    metadata = site / "others-2.5.dist-info"
    metadata.mkdir(parents=True)
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 2.5\n")
    points = "\n".join(f"{name} = others_{name}:Model" for name in modules)
    metadata.joinpath("entry_points.txt").write_text(f"[fedsim.models]\n{points}\n")
    for name, text in modules.items():
        (site / f"others_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(site))
    plugins._named.cache_clear()
    yield site
    plugins._named.cache_clear()
    for name in modules:
        sys.modules.pop(f"others_{name}", None)


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_what_ships_is_there(kind: str) -> None:
    found = plugins.names(kind)
    assert found == sorted(found)
    assert set(found) >= SHIPPED[kind]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in plugins.KINDS for name in plugins.names(kind)])
def test_what_ships_is_a_frozen_dataclass_that_says_what_it_is(kind: str, name: str) -> None:
    assert dataclasses.is_dataclass(plugins.load(kind, name))
    cls = plugins.load(kind, name)
    assert cls.__dataclass_params__.frozen
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}("), "that is what dataclass itself writes"
    assert plugins.origin(kind, name).startswith("fedsim-adversarial ")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^no data set is called 'digit'; did you mean 'digits'\?$"):
        plugins.load("datasets", "digit")


@pytest.mark.parametrize("name", ["os", "os:system", "fedsim.models.catalog:MLP", "../mlp", ""])
def test_an_import_path_is_no_name(name: str) -> None:
    with pytest.raises(InputError, match="no model is called"):
        plugins.load("models", name)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("adversaries", "adversary"),
        ("datasets", "data set"),
        ("defenses", "defense"),
        ("models", "model"),
        ("partitions", "partition"),
        ("strategies", "strategy"),
    ],
)
def test_one_of_a_kind(kind: str, word: str) -> None:
    assert plugins.singular(kind) == word


def test_somebody_elses_component_is_used_like_ours(
    others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(document({("model", "name"): '"good"', ("model", "size"): "5"}))
    assert plugins.origin("models", "good") == "others 2.5"
    assert ask(capsys, "check", str(file)).code == 0
    answer = ask(capsys, "check", str(file), "--set", "model.size=big")
    assert answer.err == "--set model.size=big: model.size: must be a whole number, not 'big'\n"
    listed = ask(capsys, "list", "models").out
    assert "[others 2.5]" in next(line for line in listed.splitlines() if line.split()[0] == "good")


def test_only_the_named_one_is_imported(others: Path) -> None:
    plugins.names("models")
    plugins.load("models", "good")
    assert "others_good" in sys.modules
    assert not {f"others_{name}" for name in MODULES if name != "good"} & set(sys.modules)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", ("RuntimeError", "no licence")),
        ("missing", ("ModuleNotFoundError", "a_package_that_nobody_has")),
        ("no_class", ("AttributeError", "Model")),
        ("syntax", ("SyntaxError",)),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named_with_its_own_words(
    name: str, words: tuple[str, ...], others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(document({("model", "name"): f'"{name}"'}))
    answer = ask(capsys, "check", str(file))
    assert answer.code == 2
    for word in (f"{file}:6: model.name: ", f"model '{name}'", "others 2.5", "cannot be imported", *words):
        assert word in answer.err


@pytest.mark.parametrize(
    ("name", "words"),
    [("plain", "not a dataclass"), ("refuses", "size is odd"), ("breaks_in_check", "the disk is gone")],
)
def test_a_plugin_that_is_none_is_refused(
    name: str, words: str, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(document({("model", "name"): f'"{name}"'}))
    answer = ask(capsys, "check", str(file))
    assert (answer.code, len(answer.problems)) == (2, 1), answer.err
    assert answer.err.startswith(f"{file}:")
    assert words in answer.err


def test_a_broken_plugin_is_listed_as_what_it_is(others: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = ask(capsys, "list", "models")
    assert answer.code == 0
    assert "no licence" in answer.out
    assert "mlp" in answer.out


@pytest.mark.parametrize("others", [{"exits": "raise SystemExit(7)"}], indirect=True)
def test_a_plugin_cannot_end_the_program(others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(document({("model", "name"): '"exits"'}))
    answer = ask(capsys, "check", str(file))
    assert answer.code == 2
    assert "model 'exits' (from others 2.5) cannot be imported: SystemExit" in answer.err
    assert ask(capsys, "list", "models").code == 0


def test_settings_are_read_without_anything_heavy() -> None:
    code = textwrap.dedent("""
        import sys
        from fedsim import plugins
        for kind in plugins.KINDS:
            for name in plugins.names(kind):
                plugins.load(kind, name)
                heavy = {"torch", "torchvision", "flwr", "ray", "numpy", "datasets", "sklearn"} & set(sys.modules)
                assert not heavy, (kind, name, heavy)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
