"""A small sweep for tests, and work that a worker can pretend to do. No test is in here, and nothing imports torch."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsim import manifest as manifests
from fedsim.runs import RunFolder
from fedsim.sweeps.cells import Grid
from fedsim.sweeps.folder import SweepFolder, begin, open_folder
from fedsim.sweeps.runner import Kind, Order

TEXT = """\
# A sweep of two defenses and two batch sizes
[sweep]
show = ["table", "plane"]
scales = ["tiny", "large"]

[values]
least = 1

[experiment]
seed = 3
rounds = 1
data = { name = "digits" }
model = { name = "mlp", hidden = [8] }

[experiment.clients]
count = 2
algorithm = "fedsgd"

[experiment.server]
evaluate_every = 0
learning_rate = 0.1

[experiment.scores]
lpips = "off"

[experiment.runtime]
device = "cpu"

[training]
attack_round = 1
set = { rounds = 2, "server.evaluate_every" = 1 }

[templates.inversion]
name = "geiping"
label = "Inversion"
vantage = "server"
targets = [0]
rounds = [1]
knows = ["labels"]
iterations = 100

[[axes]]
name = "defense"

[[axes.points]]
name = "none"
label = "None"
adversaries = ["inversion"]

[[axes.points]]
name = "p90"
adversaries = ["inversion"]
both = { "clients.defenses" = [{ name = "gradient_pruning", ratio = 0.9 }] }

[[axes]]
name = "batch"

[[axes.points]]
name = "1"
set = { "clients.batch_size" = "$least" }

[[axes.points]]
name = "4"
set = { "clients.batch_size" = 4 }

[scales.tiny]
templates = { iterations = 2 }

[scales.large]
training = { rounds = 9 }
confirm = true

[table]
rows = "batch"
columns = "defense"
values = ["psnr", "ssim"]
training = ["test_accuracy", "time_ratio"]
baseline = "none"

[[table.protocols]]
name = "plain"
adversaries = ["inversion"]

[published.psnr.mean]
"1" = { none = 10.0, p90 = 8 }
"""

KINDS = """\
[sweep]
show = []
[experiment]
rounds = 1
data = "digits"
model = "mlp"
[[axes]]
name = "how"
"""


def of_kinds(*names: str, training: bool = False) -> str:
    """A sweep with a cell for each way in which pretended work goes."""
    text = KINDS.replace("[[axes]]", "[training]\nattack_round = 1\n[[axes]]") if training else KINDS
    for place, name in enumerate(names):
        seeds = f"both = {{ seed = {place} }}" if training else f"set = {{ seed = {place} }}"
        text += f'[[axes.points]]\nname = "{name}"\n{seeds}\n'
    return text


def do(order: Order, tell: Callable[..., None]) -> int:
    """Pretend: the cell's place on the axis `how`, or the training's seed, says how it goes."""
    how = str(order.facts.get("at", {}).get("how", "")).partition("-")[0]
    if order.kind == "timing":
        order.folder.write_text(json.dumps({**order.facts, "ratio": 2.0}))
        return 0
    run = RunFolder.create(order.folder)
    manifests.write(run, {**order.facts, "status": "running", "pid": os.getpid(), "began": time.time()})
    (run.path / "experiment.toml").write_text("")
    tell("attack", "somebody", 1, 2, "")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "quits":
        os._exit(7)
    if how == "fails":
        raise ValueError("it broke")
    if how == "dies" and not Path("died").exists():  # where the sweep was started
        Path("died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    for _ in range(600 if how == "slow" else 0):
        time.sleep(0.1)
    if how == "stuck":
        time.sleep(60)
    time.sleep(0.05)
    for number in order.experiment.save_rounds:
        if order.experiment.seed == 99:
            raise ValueError("no model today")
        run.checkpoints.mkdir()
        run.checkpoint(number).write_bytes(b"")
    facts: dict[str, Any] = {"threads": order.experiment.runtime.threads, "checkpoint": order.experiment.checkpoint}
    exit_code = 3 if how == "quarantined" else 0
    manifests.write(run, {**manifests.read(run), **facts, "status": "done", "exit": exit_code, "ended": time.time()})
    return exit_code


class Notebook:
    """A watcher that writes down what it is told."""

    def __init__(self) -> None:
        self.begun: tuple[int, int] | None = None
        self.lines: list[tuple[str, str]] = []

    def begin(self, total: int, done: int) -> None:
        self.begun = (total, done)

    def started(self, kind: Kind, name: str) -> None:
        self.lines.append(("started", name))

    def moved(self, kind: Kind, name: str, word: str, facts: tuple[Any, ...]) -> None:
        self.lines.append((word, name))

    def ended(self, kind: Kind, name: str, error: str | None, seconds: float) -> None:
        self.lines.append(("ended", name))


def manifest(folder: Path) -> dict[str, Any]:
    """Of a run's folder."""
    return manifests.read(RunFolder(folder))


def opened(path: Path, grid: Grid) -> SweepFolder:
    """A sweep's folder with its plan, as the command makes it."""
    folder = open_folder(path, grid)
    begin(folder, grid)
    return folder
