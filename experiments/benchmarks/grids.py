"""What a grid costs: whole runs in process, on our Ray workers and on Flower's own Ray simulation, and how it grows.

Three parts, chosen by name: `throughput` (wall time of a whole run and of its later rounds, the same apps everywhere),
`scaling` (the time of a round, with more clients sampled of as many, and as many sampled of more), `memory` (of one
more client, and of one more worker). Each measurement is a fresh process. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peers import machine  # type: ignore[import-not-found]  # beside this script

if TYPE_CHECKING:
    import torch

    from fedsim.data.dataset import ImageData
    from fedsim.experiment import Experiment
    from fedsim.runs import RoundRecord

FLOWER, RAY, INLINE = "flower's ray", "fedsim ray", "fedsim inline"
GOALS = {RAY: (0.5, 0.7), INLINE: (0.25, None)}
"""Of Flower's wall time: the whole run, and a later round."""


@dataclass(frozen=True)
class FewPixels:
    """Random images of 8x8 pixels in two classes, four for each client: as little as a client can train on."""

    clients: int
    per_client: ClassVar[int] = 4

    def load(self) -> ImageData:
        import torch

        from fedsim.data.dataset import ImageData, Images, Normalisation

        rng = torch.Generator().manual_seed(1)

        def images(count: int) -> Images:
            pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=rng, dtype=torch.uint8)
            return Images(pixels, torch.randint(0, 2, (count,), generator=rng))

        train, test = images(self.per_client * self.clients), images(8)
        return ImageData("few pixels", train, test, ("0", "1"), Normalisation((0.5,), (0.5,)))


def tiny(clients: int, sampled: int, rounds: int) -> Experiment:
    """A model of 530 parameters and two steps for each client: what is left to measure is the grid."""
    from dataclasses import replace

    from fedsim.experiment import Component, Data
    from fedsim.experiment_file import from_table

    table = {
        "name": "tiny",
        "rounds": rounds,
        "data": "digits",
        "model": {"name": "mlp", "hidden": [8]},
        "clients": {"count": 10, "per_round": 1, "local_steps": 2, "batch_size": 2},
        "server": {"evaluate_every": 0},
        "runtime": {"threads": 1},
    }
    experiment = from_table(table)
    data = Data(Component("few_pixels", FewPixels(clients)), experiment.data.partition)
    return replace(experiment, data=data, clients=replace(experiment.clients, count=clients, per_round=sampled))


def ordinary(clients: int, rounds: int) -> Experiment:
    """MNIST-5k and LeNet: two steps of 32 images for each client in a round, and no test between."""
    from fedsim.experiment_file import from_table

    table = {
        "name": "throughput",
        "rounds": rounds,
        "data": "mnist5k",
        "model": "lenet",
        "clients": {"count": clients, "local_steps": 2, "batch_size": 32},
        "server": {"evaluate_every": 0},
        "runtime": {"threads": 1},
    }
    return from_table(table)


# --- in a process of its own ------------------------------------------------------------------------------------------


class Watching:
    """A screen that notes when rounds end."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def rounds(self, done: int, total: int, record: RoundRecord) -> None:
        self.at.append(time.time())

    def attack(self, *facts: object) -> None: ...

    def warn(self, text: str) -> None:
        print(text, file=sys.stderr)


def work(task: dict[str, Any], folder: Path) -> None:
    """One measurement; what it found is written as JSON."""
    find: dict[str, Callable[..., dict[str, Any]]] = {"run": _run, "rounds": _rounds, "memory": _memory}
    found = find[task.pop("what")](folder=folder, **task)
    (folder / "found.json").write_text(json.dumps(found))


def _run(contender: str, clients: int, rounds: int, workers: int, folder: Path) -> dict[str, Any]:
    """A whole run: when each round ended, and a hash of what it came to."""
    from dataclasses import replace

    experiment = ordinary(clients, rounds)
    if contender == FLOWER:
        return _on_flower(experiment, workers)
    from fedsim.commands.run import execute
    from fedsim.runs import RunFolder

    if contender == RAY:
        runtime = replace(experiment.runtime, grid="ray", workers=workers)
        experiment = replace(experiment, runtime=runtime)
    experiment = replace(experiment, save_rounds=(rounds,))
    screen, run = Watching(), RunFolder.create(folder / "run")
    execute(experiment, run, screen)
    from fedsim.tensorfile import unpack

    stored = unpack(run.checkpoint(rounds).read_bytes())[0]
    # The names in a checkpoint say what a tensor is; this model has no statistics.
    parameters = {name.partition("/")[2]: value for name, value in stored.items()}
    return {"at": screen.at, "weights": _summed(parameters)}


def _on_flower(experiment: Experiment, workers: int) -> dict[str, Any]:
    from flwr.simulation import run_simulation

    from fedsim.clients.app import client_app
    from fedsim.server.app import server_app

    at: list[float] = []
    parameters: dict[str, Any] = {}

    def model(round_: int, tensors: Any, running: Any) -> None:
        parameters.update(tensors)

    server = server_app(experiment, lambda record: at.append(time.time()), model)
    resources: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": workers}}
    run_simulation(server, client_app(experiment), num_supernodes=experiment.clients.count, backend_config=resources)
    return {"at": at, "weights": _summed(parameters)}


def _summed(parameters: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A number that is close where weights are, and a hash that is the same only where they are."""
    data = b"".join(value.contiguous().numpy().tobytes() for value in parameters.values())
    total = sum(float(value.double().abs().sum()) for value in parameters.values())
    return {"sum": total, "sha256": hashlib.sha256(data).hexdigest()}


def _rounds(clients: int, sampled: int, rounds: int, folder: Path) -> dict[str, Any]:
    """CPU and wall time of a round in process, as `fedsim run` has it, with its checkpoint."""
    from fedsim.commands.run import execute
    from fedsim.runs import RunFolder

    cpu: list[float] = []

    class Clock(Watching):
        def rounds(self, done: int, total: int, record: RoundRecord) -> None:
            super().rounds(done, total, record)
            cpu.append(time.process_time())

    screen = Clock()
    execute(tiny(clients, sampled, rounds), RunFolder.create(folder / "run"), screen)
    took = [after - before for before, after in itertools.pairwise(cpu)]
    walls = [after - before for before, after in itertools.pairwise(screen.at)]
    return {"cpu": statistics.median(took[1:]), "wall": statistics.median(walls[1:])}


def _memory(clients: int, workers: int, folder: Path) -> dict[str, Any]:
    """Memory of this process (workers: 0) or of all Ray workers, in a round's middle."""
    from dataclasses import replace

    from fedsim.clients.app import client_app
    from fedsim.grids.inline import InlineGrid

    if not workers:
        experiment = tiny(clients, 10, 2)
        from flwr.app import Context, RecordDict

        from fedsim.server.app import server_app

        grid = InlineGrid(client_app(experiment), clients)
        server_app(experiment, lambda record: None)(grid, Context(1, 0, {}, RecordDict(), {}))
        return {"bytes": own_bytes(os.getpid())}
    from fedsim.commands.run import execute
    from fedsim.runs import RunFolder

    experiment = ordinary(clients, 2)
    experiment = replace(experiment, runtime=replace(experiment.runtime, grid="ray", workers=workers))
    seen: list[list[int]] = []

    class Looking(Watching):
        def rounds(self, done: int, total: int, record: RoundRecord) -> None:
            if done:
                seen.append([own_bytes(number) for number in descendants(os.getpid(), "ray::ClientWorker")])

    execute(experiment, RunFolder.create(folder / "run"), Looking())
    return {"bytes": sum(seen[-1]), "workers": len(seen[-1])}


def own_bytes(number: int) -> int:
    """The memory of a process, its part of what it shares with others counted by how many they are."""
    lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def descendants(root: int, name: str) -> list[int]:
    """Processes below `root` whose command line begins so."""
    parents, names = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(place.name)] = (place / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue

    def below(number: int) -> bool:
        while number in parents:
            number = parents[number]
            if number == root:
                return True
        return False

    return [number for number in parents if names[number].startswith(name) and below(number)]


# --- the measuring process --------------------------------------------------------------------------------------------


def launch(**task: Any) -> tuple[dict[str, Any], float, float]:
    """What a fresh process found, when it began, and when it had ended."""
    quiet = {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with tempfile.TemporaryDirectory() as name:
        began = time.time()
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--work", json.dumps(task), name],
            env={**os.environ, **quiet},
            capture_output=True,
            text=True,
        )
        ended = time.time()
        if done.returncode:
            raise RuntimeError(f"{task} failed:\n{done.stderr.strip()[-3000:]}")
        return json.loads((Path(name) / "found.json").read_text()), began, ended


def throughput(clients: int, rounds: int, repeats: int, workers: int) -> list[dict[str, Any]]:
    """Whole runs of all contenders, in turns. Medians of seconds, and of ratios to Flower within a turn."""
    contenders = [FLOWER, RAY, INLINE]
    whole: dict[str, list[float]] = {name: [] for name in contenders}
    first: dict[str, list[float]] = {name: [] for name in contenders}
    later: dict[str, list[float]] = {name: [] for name in contenders}
    weights: dict[str, dict[str, Any]] = {}
    for repeat in range(repeats):
        turn = repeat % len(contenders)
        for name in contenders[turn:] + contenders[:turn]:
            task = {"what": "run", "contender": name, "clients": clients, "rounds": rounds, "workers": workers}
            found, began, ended = launch(**task)
            at, weights[name] = found["at"], found["weights"]
            whole[name].append(ended - began)
            first[name].append(at[1] - began)
            later[name].append(statistics.median(b - a for a, b in itertools.pairwise(at[1:])))
    rows = []
    for name in contenders:
        apart = abs(weights[name]["sum"] - weights[FLOWER]["sum"]) / weights[FLOWER]["sum"]
        rows.append(
            {
                "contender": name,
                "clients": clients,
                "whole": statistics.median(whole[name]),
                "first": statistics.median(first[name]),
                "later": statistics.median(later[name]),
                "whole_to_flower": _ratio(whole[name], whole[FLOWER]),
                "later_to_flower": _ratio(later[name], later[FLOWER]),
                "goals": GOALS.get(name),
                "weights_apart": apart,
                "sha256": weights[name]["sha256"],
            }
        )
    if rows[1]["sha256"] != rows[2]["sha256"] or max(row["weights_apart"] for row in rows) > 1e-5:
        raise RuntimeError(f"the contenders came to different weights, so their times do not compare: {rows}")
    return rows


def _ratio(own: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(own, other, strict=True))


def show_throughput(rows: list[dict[str, Any]], repeats: int) -> None:
    """A table."""
    print(f"{'contender':<14} {'clients':>7} {'whole s':>8} {'first round at':>14} {'later round s':>13}"
          f" {'whole/flower':>12} {'later/flower':>12}")  # fmt: skip
    for row in rows:
        print(f"{row['contender']:<14} {row['clients']:>7} {row['whole']:>8.2f} {row['first']:>14.2f}"
              f" {row['later']:>13.3f} {row['whole_to_flower']:>12.2f} {row['later_to_flower']:>12.2f}")  # fmt: skip
    print(f"medians of {repeats}; the same weights: ray and inline bit for bit, Flower to "
          f"{max(row['weights_apart'] for row in rows):.0e} of their sum")  # fmt: skip
    print("goals: fedsim ray <= 0.5 of Flower's whole run and <= 0.7 of a later round; inline <= 0.25 of the whole run")


def scaling(rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Rounds with ever more clients: sampled of 10,000, and existing with 10 sampled."""
    out: dict[str, list[dict[str, Any]]] = {"sampled of 10000": [], "existing, 10 sampled": []}
    for count in (10, 100, 1000, 10_000):
        found, *_ = launch(what="rounds", clients=10_000, sampled=count, rounds=rounds)
        out["sampled of 10000"].append({"clients": count, **found})
    for count in (10, 100, 1000, 10_000):
        found, *_ = launch(what="rounds", clients=count, sampled=10, rounds=rounds)
        out["existing, 10 sampled"].append({"clients": count, **found})
    return out


def memory() -> dict[str, list[dict[str, Any]]]:
    """Of clients in process, and of Ray workers."""
    clients = [{"clients": count, **launch(what="memory", clients=count, workers=0)[0]} for count in (10, 10_000)]
    workers = [launch(what="memory", clients=8, workers=count)[0] for count in (1, 2)]
    return {"clients": clients, "workers": workers}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["throughput", "scaling", "memory"], metavar="PART")
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 50], help="of throughput (default: 10 50)")
    parser.add_argument("--rounds", type=int, default=5, help="of each run (default: 5)")
    parser.add_argument("--repeats", type=int, default=3, help="of throughput (default: 3)")
    parser.add_argument("--workers", type=int, default=2, help="of Ray, ours and Flower's (default: 2)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--work", nargs=2, metavar=("TASK", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(json.loads(arguments.work[0]), Path(arguments.work[1]))
        return 0
    unknown = set(arguments.parts) - {"throughput", "scaling", "memory"}
    if unknown:
        parser.error(f"there is no part {min(unknown)}")
    found: dict[str, Any] = {"machine": machine(1)}
    if "throughput" in arguments.parts:
        found["throughput"] = []
        for clients in arguments.clients:
            rows = throughput(clients, arguments.rounds, arguments.repeats, arguments.workers)
            found["throughput"] += rows
            if not arguments.json:
                show_throughput(rows, arguments.repeats)
    if "scaling" in arguments.parts:
        found["scaling"] = scaling(arguments.rounds)
        for name, rows in () if arguments.json else found["scaling"].items():
            print(f"clients {name}: " + "; ".join(f"{row['clients']}: {row['cpu']:.4f} s" for row in rows))
    if "memory" in arguments.parts:
        found["memory"] = of = memory()
        if not arguments.json:
            few, many = of["clients"]
            each = (many["bytes"] - few["bytes"]) / (many["clients"] - few["clients"])
            print(
                f"memory in process: {few['bytes'] / 2**20:.0f} MiB, and {each / 1024:.1f} KiB for each further client"
            )
            one, two = of["workers"]
            print(f"memory of Ray's client workers: {one['bytes'] / 2**20:.0f} MiB for {one['workers']}, "
                  f"{two['bytes'] / 2**20:.0f} MiB for {two['workers']}")  # fmt: skip
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"machine: {found['machine']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
