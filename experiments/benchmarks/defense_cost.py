"""What a defense adds to the CPU time of a client's round: a local step of fedsgd with the defense, over one without.

All run in one process, on the same images and weights, and each measurement of a defense has one without right beside
it, before or after by turns, so that a busy machine troubles both alike. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from peers import machine  # type: ignore[import-not-found]  # beside this script

from fedsim import plugins
from fedsim.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.experiment import Experiment

CLIENT = 0
TOGETHER = ("gradient_pruning+mixup", "gradient_pruning+instahide")
"""Combinations that are measured besides every defense by itself; the paper has these two."""


def experiment_for(defense: str, data: str, model: str, batch: int, threads: int) -> Experiment:
    """A client's round with the defenses of `defense` (joined by +, with their default settings), or with none ("")."""
    from fedsim.experiment_file import from_table

    return from_table(
        {
            "rounds": 1,
            "data": {"name": data},
            "model": model,
            "clients": {
                "count": 10,
                "algorithm": "fedsgd",
                "batch_size": batch,
                "defenses": [{"name": name} for name in defense.split("+") if name],
            },
            "runtime": {"device": "cpu", "threads": threads},
        }
    )


class Client:
    """A client that plays one round after the other, always from the initial weights."""

    def __init__(self, experiment: Experiment) -> None:
        from fedsim.clients.workbench import Workbench

        self.place = Workbench(experiment)
        self.parameters = {name: value.detach().clone() for name, value in self.place.model.named_parameters()}
        self.memory: Mapping[int, Mapping[str, Tensor]] = {}

    def play(self, round_: int) -> float:
        """Process CPU seconds of a round: the batch with its encoding, the gradient, and what is done to it."""
        before = time.process_time()
        trained, _ = self.place.train(CLIENT, round_, self.parameters, {})
        _, self.memory = self.place.perturb(trained.update, CLIENT, round_, self.parameters, self.memory)
        return time.process_time() - before


@dataclass(frozen=True)
class Row:
    """One line of the table. bare, defended: CPU seconds of each pair of rounds; ratios: defended by bare."""

    defense: str
    bare: list[float]
    defended: list[float]

    @property
    def ratios(self) -> list[float]:
        return [with_it / without for with_it, without in zip(self.defended, self.bare, strict=True)]


def measure(clients: Mapping[str, Client], repeats: int) -> list[Row]:
    """A row for each defense, of rounds 2 and later: the first was to warm up. The client without one is called ""."""
    bare = clients[""]
    rows = {name: Row(name, [], []) for name in clients if name}
    for round_ in range(2, repeats + 2):
        for place, (name, row) in enumerate(rows.items()):
            pair = [(bare, row.bare), (clients[name], row.defended)]
            for client, seconds in pair if (round_ + place) % 2 else pair[::-1]:
                seconds.append(client.play(round_))
    return list(rows.values())


def available(wanted: list[str] | None, skip: list[str]) -> list[str]:
    """The defenses to measure. Raises InputError for an unknown one that was asked for."""
    there = plugins.names("defenses")
    for name in "+".join([*(wanted or []), *skip]).split("+"):
        if name:
            plugins.load("defenses", name)
    together = [both for both in TOGETHER if set(both.split("+")) <= set(there)]
    return [name for name in wanted or [*there, *together] if not set(name.split("+")) & set(skip)]


def report(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows with their medians and quartiles."""
    return [
        {**asdict(row), "ratio": statistics.median(row.ratios), "quartiles": _quartiles(row.ratios)} for row in rows
    ]


def _quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive")


def show(rows: list[Row]) -> None:
    """The table, as plain text."""
    floor = [second for row in rows for second in row.bare]
    low, middle, high = (1000 * value for value in _quartiles(floor))
    print(f"without a defense: {middle:.2f} CPU ms a round (quartiles {low:.2f}-{high:.2f}, {len(floor)} rounds)")
    width = max(len(row.defense) for row in rows)
    print(f"{'defense':<{width}} {'ratio':>7} {'quartiles':>15} {'added ms':>9}")
    for row, numbers in zip(rows, report(rows), strict=True):
        added = 1000 * statistics.median(b - a for a, b in zip(row.bare, row.defended, strict=True))
        spread = f"{numbers['quartiles'][0]:.3f}-{numbers['quartiles'][2]:.3f}"
        print(f"{row.defense:<{width}} {numbers['ratio']:>7.3f} {spread:>15} {added:>9.2f}")


def main() -> int:
    """Measure and print. Returns 2 for a wrong name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convnet6", help="default: convnet6")
    parser.add_argument("--data", default="mnist5k", help="default: mnist5k")
    parser.add_argument("--batch", type=int, default=32, help="images of the local step (default: 32)")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of rounds for each defense (default: 9)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--defenses", nargs="+", metavar="NAME", help="these alone; a+b for two together")
    parser.add_argument("--skip", nargs="+", metavar="NAME", default=[], help="all but these (soteria takes long)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    arguments = parser.parse_args()
    if min(arguments.batch, arguments.threads) < 1 or arguments.repeats < 2:
        parser.error("--batch and --threads must be at least 1, --repeats at least 2")
    torch.set_num_threads(arguments.threads)

    clients: dict[str, Client] = {}
    skipped: dict[str, str] = {}
    try:
        for name in ["", *available(arguments.defenses, arguments.skip)]:
            try:
                experiment = experiment_for(name, arguments.data, arguments.model, arguments.batch, arguments.threads)
                clients[name] = Client(experiment)
                clients[name].play(1)
            except InputError as reason:
                if not name:
                    raise
                clients.pop(name, None)
                skipped[name] = str(reason)
    except InputError as reason:
        print(reason, file=sys.stderr)
        return 2
    if len(clients) < 2:
        print("no defense is left to measure", *(f"{name}: {why}" for name, why in skipped.items()), file=sys.stderr)
        return 2

    rows = measure(clients, arguments.repeats)
    versions = {name: version(name) for name in ("torch", "numpy")} | {"python": platform.python_version()}
    described = machine(arguments.threads)
    if arguments.json:
        task = {key: getattr(arguments, key) for key in ("model", "data", "batch", "repeats", "threads")}
        print(
            json.dumps(
                {"rows": report(rows), **task, "machine": described, "versions": versions, "skipped": skipped}, indent=2
            )
        )
        return 0
    show(rows)
    for name, why in skipped.items():
        print(f"{name}: skipped ({why})")
    print(f"{arguments.model} on {arguments.data}, batch {arguments.batch}; {described}")
    print(", ".join(f"{name} {number}" for name, number in versions.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
