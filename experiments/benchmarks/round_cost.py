"""What a round of federated averaging costs in CPU time: `fedsim run`, pfl's simulated backend, bare torch.

All three do the same work from the same weights on the same images: every client copies the global model, takes an
epoch of SGD on its 64 images, and the differences are averaged. fedsim writes its line of the round and a checkpoint
besides. Each measurement is a fresh process, and contenders take turns, so that a busy machine troubles all of them
alike. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from peers import machine, peer_python  # type: ignore[import-not-found]  # beside this script
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from fedsim.data.dataset import ImageData
    from fedsim.experiment import Experiment

IMAGES = 64
"""Images of one client."""
SHAPE, CLASSES = (3, 32, 32), 10
LEARNING_RATE = 0.05
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
PARAMETERS = 62_006
BATCH = 32
CHECK_ROUNDS = 2
TOLERANCE = 1e-6
"""How far two contenders' weights may be apart after the check's rounds."""

FEDSIM, PFL, BARE = "fedsim", "pfl", "bare torch"
UNSAVED, VECTORIZED = "fedsim-unsaved", "fedsim-vectorized"
"""fedsim without checkpoints, and with the clients of a round as one computation: on demand."""
PFL_VERSION = "0.6.0"
PEER_PACKAGES = (f"pfl=={PFL_VERSION}", "dp-accounting==0.5.0", "prv-accountant==0.2.0", "absl-py==2.5.1")
"""pfl and what it imports that fedsim does not bring along. Torch, NumPy and SciPy are shared, so that all contenders
run the same build."""
PEER_IMPORTS = "import pfl.aggregate.simulate, pfl.algorithm.federated_averaging, pfl.data, pfl.model.pytorch"

Result = tuple[list[float], dict[str, Tensor]]
"""Process CPU seconds of each round, the warm-up first, and the global weights at the end."""


@dataclass(frozen=True)
class Task:
    """What one process is to do.

    rounds: how many, the warm-up round included. batch: images a local step.
    """

    contender: str
    clients: int
    rounds: int
    batch: int
    threads: int


class Net(nn.Module):
    """The small convolutional network of many tutorials, 62,006 parameters on 3x32x32 images and 10 classes."""

    def __init__(self, shape: tuple[int, int, int] = SHAPE, classes: int = CLASSES) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        side = [((length - 4) // 2 - 4) // 2 for length in (height, width)]
        self.fc1 = nn.Linear(16 * side[0] * side[1], 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


@dataclass(frozen=True)
class TutorialCNN:
    """`Net` as a model component of fedsim."""

    batchnorm: ClassVar[bool] = False

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return Net(shape, classes)


@dataclass(frozen=True)
class RandomImages:
    """Random pixels with random labels, as a data set component of fedsim: `clients` times 64 training images."""

    clients: int

    def load(self) -> ImageData:
        from fedsim.data.dataset import ImageData, Images, Normalisation

        rng = torch.Generator().manual_seed(1)

        def draw(count: int) -> Images:
            pixels = torch.randint(0, 256, (count, *SHAPE), generator=rng, dtype=torch.uint8)
            return Images(pixels, torch.randint(0, CLASSES, (count,), generator=rng))

        names = tuple(str(label) for label in range(CLASSES))
        return ImageData("random", draw(self.clients * IMAGES), draw(IMAGES), names, Normalisation(MEAN, STD))


def experiment_for(task: Task) -> Experiment:
    """The task as an experiment of fedsim. It is tested before the first round and after the last one only."""
    from fedsim.experiment import Component, Data
    from fedsim.experiment_file import from_table

    made = from_table(
        {
            "rounds": task.rounds,
            "data": {"name": "digits", "partition": {"kind": "iid"}},
            "model": "mlp",
            "clients": {"count": task.clients, "batch_size": task.batch, "learning_rate": LEARNING_RATE},
            "server": {"strategy": "fedavg", "evaluate_every": 10**9},
            "runtime": {
                "device": "cpu",
                "threads": task.threads,
                "checkpoint_every": int(task.contender != UNSAVED),
                "vectorized": "on" if task.contender == VECTORIZED else "off",
            },
            "save_rounds": [task.rounds],
        }
    )
    data = Data(Component("random_images", RandomImages(task.clients)), made.data.partition)
    return replace(made, data=data, model=Component("tutorial_cnn", TutorialCNN()))


def prepare(task: Task) -> dict[str, Tensor]:
    """The same start for those who know nothing of fedsim: initial weights, and each client's normalised images."""
    from fedsim.data.federation import load_federation
    from fedsim.models.initial import initial_model

    experiment = experiment_for(task)
    federation = load_federation(
        experiment.data.dataset.settings, experiment.data.partition.settings, task.clients, experiment.seed
    )
    model = initial_model(experiment, federation.data)
    start = {f"start.{name}": value.detach() for name, value in model.named_parameters()}
    if sum(value.numel() for value in start.values()) != PARAMETERS:
        raise AssertionError(f"the network has not {PARAMETERS} parameters")
    for client in range(task.clients):
        batch = federation.batch(client, range(IMAGES))
        start[f"images.{client}"] = federation.data.normalisation(batch.images)
        start[f"labels.{client}"] = batch.labels
    return start


def _start(inputs: dict[str, Tensor], model: nn.Module) -> None:
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(inputs[f"start.{name}"])


def run_fedsim(task: Task, inputs: dict[str, Tensor]) -> Result:
    """All that `fedsim run` does in a round: apps, grid, the line of the round, the checkpoint of the one before."""
    from fedsim.clients.workbench import workbench
    from fedsim.runs import RunFolder
    from fedsim.simulation import simulate

    times: list[float] = []

    class Clock:
        def rounds(self, done: int, total: int, record: Any) -> None:
            times.append(time.process_time())

        def attack(self, name: str, done: int, total: int, note: str) -> None: ...

        def warn(self, text: str) -> None:
            raise AssertionError(text)

    # The last round ends with a test, which is no part of the comparison: `measure` leaves that round out.
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder.create(Path(name) / "run")
        experiment = experiment_for(task)
        simulate(experiment, folder, Clock())
        if task.contender == VECTORIZED and workbench(experiment).ahead is None:
            raise AssertionError("the clients were not trained together")
        stored = load_file(folder.checkpoint(task.rounds))
    found = {key.removeprefix("model/"): value for key, value in stored.items() if key.startswith("model/")}
    return _differences(times), found


def run_pfl(task: Task, inputs: dict[str, Tensor]) -> Result:
    """pfl's FederatedAveraging on its simulated backend, set up as its own examples do it."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import MinimizeReuseUserSampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    class PflNet(Net):
        def loss(self, images: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(self(images), labels)

        @torch.no_grad()
        def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
            return {"loss": Weighted(float(self.loss(images, labels)) * len(images), len(images))}

    times = [time.process_time()]

    class Clock(TrainingProcessCallback):
        def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Any]:
            times.append(time.process_time())
            return False, Metrics()

    net = PflNet()
    _start(inputs, net)
    users = {i: [inputs[f"images.{i}"], inputs[f"labels.{i}"]] for i in range(task.clients)}
    data = FederatedDataset.from_slices(users, MinimizeReuseUserSampler(list(users)))
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
    FederatedAveraging().run(
        # pfl tests the clients in its first iteration, whatever the frequency: that is the warm-up.
        NNAlgorithmParams(
            central_num_iterations=task.rounds,
            evaluation_frequency=10**9,
            train_cohort_size=task.clients,
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=data, val_data=data),
        model,
        NNTrainHyperParams(local_batch_size=task.batch, local_num_epochs=1, local_learning_rate=LEARNING_RATE),
        callbacks=[Clock()],
        send_metrics_to_platform=False,
    )
    return _differences(times), {name: value.detach() for name, value in net.named_parameters()}


def run_bare(task: Task, inputs: dict[str, Tensor]) -> Result:
    """The floor: nothing but the arithmetic, one model and one optimizer for everybody."""
    model = Net()
    _start(inputs, model)
    own = list(model.parameters())
    optimizer = torch.optim.SGD(own, lr=LEARNING_RATE)
    central = [value.detach().clone() for value in own]
    times = [time.process_time()]
    for _ in range(task.rounds):
        total = [torch.zeros_like(value) for value in central]
        for client in range(task.clients):
            with torch.no_grad():
                for value, start in zip(own, central, strict=True):
                    value.copy_(start)
            for images, labels in _batches(inputs, client, task.batch):
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
            with torch.no_grad():
                for sum_, value, start in zip(total, own, central, strict=True):
                    sum_.add_(value - start)
        for start, sum_ in zip(central, total, strict=True):
            start.add_(sum_, alpha=1 / task.clients)
        times.append(time.process_time())
    names = [name for name, _ in model.named_parameters()]
    return _differences(times), dict(zip(names, central, strict=True))


def _batches(inputs: dict[str, Tensor], client: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(inputs[f"images.{client}"].split(size), inputs[f"labels.{client}"].split(size), strict=True)


def _differences(times: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(times)]


RUNNERS: dict[str, Callable[[Task, dict[str, Tensor]], Result]] = {
    FEDSIM: run_fedsim,
    UNSAVED: run_fedsim,
    VECTORIZED: run_fedsim,
    PFL: run_pfl,
    BARE: run_bare,
}


def work(task: Task, folder: Path) -> None:
    """In a process of its own: do the task, leave the times and the weights in the folder."""
    torch.set_num_threads(task.threads)
    seconds, weights = RUNNERS[task.contender](task, load_file(folder / f"start{task.clients}.safetensors"))
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "weights.safetensors")
    (folder / "seconds.json").write_text(json.dumps(seconds))


def launch(task: Task, folder: Path, peer: Path | None) -> Result:
    """Do the task in a fresh process."""
    python = str(peer) if task.contender == PFL else sys.executable
    threads = str(task.threads)
    quiet = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "PFL_PYTORCH_DEVICE": "cpu",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    done = subprocess.run(
        [python, __file__, "--work", json.dumps(asdict(task)), str(folder)],
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{task.contender} failed:\n{done.stderr.strip()}")
    return json.loads((folder / "seconds.json").read_text()), load_file(folder / "weights.safetensors")


@dataclass(frozen=True)
class Row:
    """One line of the table. seconds: the median round of each process. Ratios: None without that contender."""

    contender: str
    clients: int
    seconds: list[float]
    to_bare: float | None
    to_pfl: float | None


def agreement(contenders: list[str], clients: int, threads: int, folder: Path, peer: Path | None) -> dict[str, Any]:
    """Two rounds of one full batch a client, where the order of the images cannot matter: are the weights the same?"""
    finals = {}
    for name in contenders:
        _, finals[name] = launch(Task(name, clients, CHECK_ROUNDS, IMAGES, threads), folder, peer)
    start = load_file(folder / f"start{clients}.safetensors")
    floor = finals[BARE]
    apart = {
        name: max(float((weights[key] - floor[key]).abs().max()) for key in floor)
        for name, weights in finals.items()
        if name != BARE
    }
    moved = max(float((floor[key] - start[f"start.{key}"]).abs().max()) for key in floor)
    return {
        "clients": clients,
        "apart": apart,
        "moved": moved,
        "agree": all(distance <= TOLERANCE for distance in apart.values()) and moved > 100 * TOLERANCE,
    }


def measure(
    contenders: list[str], clients: int, rounds: int, repeats: int, threads: int, folder: Path, peer: Path | None
) -> list[Row]:
    """The rows of one number of clients."""
    medians: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        turn = repeat % len(contenders)
        for name in contenders[turn:] + contenders[:turn]:
            # One round to warm up, and a last one, which holds fedsim's closing test.
            seconds, _ = launch(Task(name, clients, rounds + 2, BATCH, threads), folder, peer)
            medians[name].append(statistics.median(seconds[1:-1]))

    def ratio(name: str, other: str) -> float | None:
        # Within a repeat the machine was in one mood; the median is over repeats.
        if other not in medians:
            return None
        return statistics.median(a / b for a, b in zip(medians[name], medians[other], strict=True))

    return [Row(name, clients, medians[name], ratio(name, BARE), ratio(name, PFL)) for name in contenders]


def show(rows: list[Row]) -> None:
    """The table, as plain text."""
    print(f"{'contender':<18} {'clients':>7} {'CPU s/round':>11} {'min-max':>15} {'to bare torch':>13} {'to pfl':>7}")
    for row in rows:
        spread = f"{min(row.seconds):.4f}-{max(row.seconds):.4f}"
        ratios = [f"{value:.2f}" if value is not None else "-" for value in (row.to_bare, row.to_pfl)]
        median = statistics.median(row.seconds)
        print(f"{row.contender:<18} {row.clients:>7} {median:>11.4f} {spread:>15} {ratios[0]:>13} {ratios[1]:>7}")


def main() -> int:
    """Measure and print. Returns 1 where contenders disagree about the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 50], help="how many clients (default: 10 50)")
    parser.add_argument("--rounds", type=int, default=8, help="timed rounds in a process (default: 8)")
    parser.add_argument("--repeats", type=int, default=5, help="processes for each contender (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument(
        "--also", nargs="+", default=[], choices=[UNSAVED, VECTORIZED], help="measure these variants of fedsim, too"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument(
        "--peers", type=Path, default=Path("build/bench"), help="where pfl's environment is made (default: build/bench)"
    )
    parser.add_argument("--work", nargs=2, metavar=("TASK", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(Task(**json.loads(arguments.work[0])), Path(arguments.work[1]))
        return 0
    if min(*arguments.clients, arguments.rounds, arguments.repeats, arguments.threads) < 1:
        parser.error("--clients, --rounds, --repeats and --threads must be at least 1")

    contenders, peer, skipped = [FEDSIM, *dict.fromkeys(arguments.also), PFL, BARE], None, None
    try:
        peer = peer_python(arguments.peers.absolute() / "pfl", PEER_PACKAGES, PEER_IMPORTS)
    except RuntimeError as reason:
        contenders.remove(PFL)
        skipped = f"pfl {PFL_VERSION}: skipped ({reason})"
        print(skipped, file=sys.stderr if arguments.json else sys.stdout)

    versions = {name: version(name) for name in ("torch", "flwr", "numpy")} | {"python": platform.python_version()}
    checks, rows = [], []
    described = machine(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for clients in arguments.clients:
            start = prepare(Task(BARE, clients, 1, BATCH, arguments.threads))
            save_file(start, folder / f"start{clients}.safetensors")
            checks.append(agreement(contenders, clients, arguments.threads, folder, peer))
            rows += measure(contenders, clients, arguments.rounds, arguments.repeats, arguments.threads, folder, peer)

    agree = all(check["agree"] for check in checks)
    if arguments.json:
        report = {
            "rows": [{**asdict(row), "median": statistics.median(row.seconds)} for row in rows],
            "checks": checks,
            "machine": described,
            "versions": versions | ({"pfl": PFL_VERSION} if peer else {}),
            "skipped": skipped,
        }
        print(json.dumps(report, indent=2))
        return 0 if agree else 1
    show(rows)
    for check in checks:
        distances = ", ".join(f"{name} {distance:.1e}" for name, distance in check["apart"].items())
        verdict = "the same weights" if check["agree"] else "DIFFERENT WEIGHTS, so the times do not compare"
        print(
            f"check, {check['clients']} clients: {verdict} after {CHECK_ROUNDS} full-batch rounds "
            f"(largest distance to bare torch: {distances}; largest move of a weight: {check['moved']:.1e})"
        )
    shown = ", ".join(f"{name} {number}" for name, number in versions.items())
    print(f"versions: {shown}" + (f", pfl {PFL_VERSION}" if peer else ""))
    print(f"machine: {described}")
    print(f"{arguments.repeats} processes for each line, {arguments.rounds} timed rounds in each, batch size {BATCH}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
