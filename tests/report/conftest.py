"""A run folder as `fedsim run` leaves it, made up: small pictures, plausible numbers, nothing trained."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsim.report.pictures import comparison

EXPERIMENT = """\
seed = 7
rounds = {rounds}
name = "pruning and noise against Geiping"
[data]
name = "mnist5k"
partition = {{ kind = "dirichlet", alpha = 0.5 }}
[model]
name = "convnet6"
[clients]
count = 6
algorithm = "fedsgd"
batch_size = 8
batchnorm = "local"
defenses = []
[[clients.groups]]
members = [1]
defenses = [
    {{ name = "gradient_pruning", ratio = 0.9 }},
    {{ name = "gradient_noise", kind = "gaussian", std = 0.01 }},
]
[server]
strategy = {{ name = "fedavg" }}
learning_rate = 0.1
evaluate_every = 2
[[adversaries]]
id = "geiping"
name = "geiping"
vantage = "link"
targets = [0, 1, 3]
rounds = [1]
knows = ["labels"]
iterations = 400
total_variation = 1e-4
[[adversaries]]
id = "geiping-aware"
name = "geiping"
vantage = "server"
targets = [1]
rounds = [1]
knows = ["labels", "defenses"]
iterations = 400
[runtime]
grid = "inline"
device = "cpu"
"""
PRUNING = [
    {"name": "gradient_pruning", "ratio": 0.9},
    {"name": "gradient_noise", "kind": "gaussian", "std": 0.01},
]


def digits(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Pictures with a digit each, (count, 1, 28, 28) in [0, 1]."""
    from PIL import Image, ImageDraw, ImageFont

    images = []
    for index in range(count):
        image = Image.new("L", (28, 28))
        x, y = rng.uniform(5, 9), rng.uniform(-2, 2)
        ImageDraw.Draw(image).text((x, y), str(index % 10), fill=255, font=ImageFont.load_default(size=24))
        images.append(np.asarray(image, dtype=np.float64)[None] / 255)
    return np.stack(images)


def attack(**changes: Any) -> dict[str, Any]:
    """A line of `attacks.jsonl`."""
    line = {
        "adversary": "geiping",
        "plugin": "geiping",
        "client": 0,
        "round": 1,
        "vantage": "link",
        "batch": 8,
        "images": 8,
        "psnr": 26.4,
        "ssim": 0.88,
        "lpips": 0.2,
        "lpips_net": "squeeze",
        "lpips_note": None,
        "label_accuracy": 1.0,
        "iterations": 400,
        "seconds": 11.2,
        "objective": 0.0041,
        "status": "done",
        "error": None,
        "history": [[step, 0.9 * math.exp(-step / 80) + 0.004] for step in range(0, 401, 10)],
        "per_image": {
            "psnr": [24.0, 25.1, 26.0, 26.2, 26.9, 27.2, 27.6, 28.2],
            "ssim": [0.79, 0.84, 0.86, 0.88, 0.89, 0.91, 0.93, 0.94],
            "lpips": [0.3, 0.25, 0.21, 0.2, 0.18, 0.17, 0.15, 0.14],
        },
        "picture": "reconstructions/geiping-c0-r1.png",
        "notes": {"engine": "eager"},
        "defenses": [],
        "aware": False,
        "job": "a" * 64,
    }
    return line | changes


def defended(ssim: float, psnr: float, **changes: Any) -> dict[str, Any]:
    """A line about client 1, whose defenses help."""
    spread = [-0.06, -0.04, -0.03, 0.0, 0.01, 0.02, 0.04, 0.06]
    per_image = {"psnr": [psnr + 20 * s for s in spread], "ssim": [ssim + s for s in spread], "lpips": None}
    history = [[step, 0.5 * math.exp(-step / 200) + 0.3] for step in range(0, 401, 10)]
    return attack(
        client=1,
        ssim=ssim,
        psnr=psnr,
        lpips=None,
        lpips_note="not available: the weights of squeezenet are not in the cache",
        objective=0.37,
        defenses=PRUNING,
        per_image=per_image,
        history=history,
        **changes,
    )


def make_run(folder: Path, rounds: int = 20) -> Path:
    """Write a whole run folder."""
    rng = np.random.default_rng(0)
    (folder / "reconstructions").mkdir(parents=True)
    (folder / "experiment.toml").write_text(EXPERIMENT.format(rounds=rounds))
    truth = digits(8, rng)
    for name, amount in (("geiping-c0-r1", 0.06), ("geiping-c1-r1", 0.9), ("aware-c1-r1", 0.7)):
        guess = truth * (1 - min(amount, 0.85)) + rng.uniform(0, 1, truth.shape) * amount
        comparison(truth, guess, folder / "reconstructions" / f"{name}.png")
    labels = [rng.multinomial(int(size), rng.dirichlet([0.5] * 10)) for size in rng.integers(150, 700, 6)]
    link = {
        "adversary": "geiping",
        "sees": ["global_model", "update", "num_examples"],
        "knows": ["labels"],
        "does_not_see": ["the private images", "what the other clients send"],
        "powers": [],
        "words": "An eavesdropper on the link of clients 0, 1 and 3 reads every message between them and the server, "
        "before any encryption. It is told the labels of the private batch. It alters nothing.",
    }
    server = link | {
        "adversary": "geiping-aware",
        "knows": ["labels", "defenses"],
        "words": "The server is honest but curious: it follows the protocol and looks at each update that it receives. "
        "It is told the labels and which defenses client 1 uses, but not their random draws.",
    }
    manifest = {
        "fedsim": "0.1.0",
        "versions": {"torch": "2.11.0", "flwr": "1.41.0", "numpy": "2.4.6"},
        "python": "3.11.9",
        "platform": "Linux-x86_64",
        "device": "cpu",
        "threads": 2,
        "seed": 7,
        "experiment_sha256": "0123456789abcdef" * 4,
        "started": "2025-05-06T10:11:12+00:00",
        "finished": "2025-05-06T10:13:02+00:00",
        "seconds": 110.4,
        "exit": 3,
        "status": "done",
        "command": "fedsim run pruning.toml --set seed=7",
        "parameters": 1_234_567,
        "classes": 10,
        "image_shape": [1, 28, 28],
        "clients": [
            {"client": index, "examples": int(counts.sum()), "labels": counts.tolist()}
            for index, counts in enumerate(labels)
        ],
        "who_sees_what": [link, server],
        "warnings": ["client 5 holds images of 3 classes only"],
        "some_later_key": {"unknown": True},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    lines = []
    for number in range(rounds + 1):
        evaluated = number % 2 == 0
        lines.append(
            {
                "round": number,
                "clients": [] if number == 0 else list(range(6)),
                "dropouts": [{"client": 4, "reason": "loss became NaN"}] if number == 3 else [],
                "train_loss": None if number == 0 else 2.2 * math.exp(-number / 7) + 0.1,
                "test_loss": 2.3 * math.exp(-number / 9) + 0.2 if evaluated else None,
                "test_accuracy": 0.93 - 0.82 * math.exp(-number / 5) if evaluated else None,
                "seconds": 0.52,
            }
        )
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    attacks = [
        attack(),
        defended(0.12, 9.1, picture="reconstructions/geiping-c1-r1.png", job="b" * 64),
        defended(
            0.14,
            9.6,
            picture="reconstructions/aware-c1-r1.png",
            adversary="geiping-aware",
            vantage="server",
            aware=True,
            job="c" * 64,
        ),
        attack(
            client=3,
            psnr=None,
            ssim=None,
            lpips=None,
            label_accuracy=None,
            objective=None,
            status="failed",
            error="the attack raised RuntimeError: out of memory; quarantined after 3 tries",
            history=[],
            per_image={},
            picture=None,
            job="d" * 64,
        ),
    ]
    (folder / "attacks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in attacks))
    return folder


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run folder, made once. Not to be changed."""
    return make_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture
def run(tmp_path: Path, pristine: Path) -> Path:
    """A whole run folder of a test's own."""
    return shutil.copytree(pristine, tmp_path / "run")


@pytest.fixture
def make_attack() -> Callable[..., dict[str, Any]]:
    """Makes a line of `attacks.jsonl` with changes to it."""
    return attack


@pytest.fixture
def labels_alone() -> dict[str, Any]:
    """A line of an attack that was after the labels and no images."""
    nothing: dict[str, Any] = dict.fromkeys(("psnr", "ssim", "lpips", "lpips_note", "picture"))
    return attack(
        **nothing,
        adversary="labels",
        plugin="label_inference",
        images=0,
        label_accuracy=0.875,
        iterations=0,
        history=[],
        per_image={"psnr": [], "ssim": [], "lpips": None},
        job="e" * 64,
    )


@pytest.fixture
def summed() -> dict[str, Any]:
    """A line of an attack on the sum of three clients."""
    return attack(client=None, clients=[0, 2, 3], adversary="sum", vantage="server", batch=8, job="f" * 64)
