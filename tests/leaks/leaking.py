"""Small federations with canaries everywhere, and spies at every place. No test is in here."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spies
from canaries import Canary, Search, reachable
from leak_rules import Cell, Verdict
from planting import Planted
from spies import Spy, SpyingDerivation

from fedsim import experiment_checks
from fedsim.adversaries.storage import JobStore, observations_of
from fedsim.clients.workbench import workbench
from fedsim.experiment import AdversaryEntry, Component, Experiment
from fedsim.experiment_file import from_table
from fedsim.runs import RunFolder
from fedsim.schema import Problems
from fedsim.simulation import Outcome, simulate

CLIENTS = 4
SEED = 5318008431877269042
"""Of 19 digits, so that it is found nowhere by chance."""
SPY = "leak_spy"
GAP = bytes(32)
"""Between two things that are searched as one: no canary begins in the one and ends in the other."""
ITEMS = ("labels", "batch_statistics", "running_statistics", "defenses", "mixing_indices", "mixing_coefficients")
WITHOUT_MIXING = ITEMS[:4]
MODES: Mapping[str, Any] = {
    "off": "off",
    "ideal": "ideal",
    "secagg+": "secagg+",
    "ckks": {"name": "ckks", "poly_modulus_degree": 4096},
}


class Screen:
    """Remembers warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def rounds(self, *_: Any) -> None: ...
    def attack(self, *_: Any) -> None: ...
    def warn(self, text: str) -> None:
        self.warnings.append(text)


def check_legal(experiment: Experiment) -> None:
    """What no file could ask for shows nothing."""
    problems = Problems("a test", None, {})
    experiment_checks.check(experiment, problems)
    assert not problems.found, problems.found


@dataclass
class Federation:
    """Where data and runs are. Names of both are canaries themselves."""

    folder: Path
    data: Path = field(init=False)

    def __post_init__(self) -> None:
        """Random images have no two alike patches, and random labels no two alike sequences."""
        rng = np.random.default_rng(5)
        self.data = self.folder / f"data-{secrets.token_hex(16)}.npz"
        size = 24 * CLIENTS
        arrays: dict[str, Any] = {
            "x_train": rng.integers(0, 256, (size, 8, 8), np.uint8),
            "y_train": rng.integers(0, 10, size),
            "x_test": rng.integers(0, 256, (16, 8, 8), np.uint8),
            "y_test": rng.integers(0, 10, 16),
        }
        np.savez(self.data, **arrays)

    def experiment(
        self, mode: str, tls: bool, policy: str = "local", mix: bool = False, algorithm: str = "fedsgd", **more: Any
    ) -> Experiment:
        """Numbers of the settings are canaries. Every client has its own where no sum is shown."""

        def own(client: int) -> dict[str, Any]:
            alike = 0 if mode != "off" else client
            mixup = [{"name": "mixup", "k": 4}] if mix else []
            noise = {"name": "gradient_noise", "std": 0.01 + 0.00123457 * (alike + 1)}
            rate = {"learning_rate": 0.05 + 0.00314159 * (alike + 1)} if algorithm == "fedavg" else {}
            return {"batch_size": 16 + client, "defenses": [*mixup, noise], **rate}

        groups = [{"members": [client], **own(client)} for client in range(CLIENTS)]
        clients = {
            "count": CLIENTS,
            "algorithm": algorithm,
            "batchnorm": policy,
            "groups": groups,
            **more.pop("clients", {}),
        }
        table = {
            "seed": SEED,
            "rounds": 1,
            "data": {"name": "npz", "path": str(self.data)},
            "model": {"name": "tiny_batchnorm"},
            "clients": {**clients, **({"local_steps": 1} if algorithm == "fedavg" else {})},
            "server": {"learning_rate": 0.1, "evaluate_every": 0, "tls": tls, "secure_aggregation": MODES[mode]},
            "scores": {"lpips": "off"},
            "runtime": {"isolation": "none"},
        }
        return from_table({**table, **more})


@dataclass
class Played:
    """What became of a run. reached: by adversary, all that it was given. models: those that spies were asked about."""

    cells: Mapping[str, Cell]
    reached: dict[str, set[bytes]] = field(repr=False)
    models: list[bytes] = field(repr=False)
    search: Search
    canaries: list[Canary] = field(repr=False)
    outcome: Outcome = field(repr=False)
    screen: Screen

    def found(self, name: str) -> set[Canary]:
        """The canaries that reached an adversary."""
        return self.search(GAP.join(self.reached[name]))

    def leaks(self, name: str, found: set[Canary]) -> set[Canary]:
        """What of it an adversary may not have.

        What says the same of two clients, such as a setting that both have, is seen of both. Not so where the same
        bytes are of two kinds: an update whose mask is none is a leak.
        """
        verdict = self.cells[name].verdict
        open_ = {(one.kind, one.data) for one in self.canaries if verdict(one) is not Verdict.NEVER}
        return {one for one in found if (one.kind, one.data) not in open_}

    def judged(self) -> Iterator[tuple[Cell, set[Canary], set[Canary], set[Canary]]]:
        """By cell: what was found and must not be there (leaks), what should have been found, and what was."""
        for name, cell in self.cells.items():
            found = self.found(name)
            missed = {one for one in self.canaries if cell.verdict(one) is Verdict.MUST and one not in found}
            yield cell, self.leaks(name, found), missed, found


def cells(
    experiment: Experiment,
    vantages: Iterable[str] = ("link", "server", "client"),
    knowledge: Iterable[tuple[str, ...]] = ((),),
    **more: Any,
) -> list[Cell]:
    """Cells of one experiment: every vantage with every knowledge that a file can grant. A client is the last one."""
    mode = experiment.server.secure_aggregation
    out = []
    for vantage in vantages:
        # What was mixed tells single images apart: not those of a sum, nor those of nobody that one sees.
        apart = vantage == "link" or (vantage == "server" and mode is None and not more.get("aggregate"))
        for asked in knowledge:
            knows = tuple(item for item in asked if apart or not item.startswith("mixing_"))
            if knows or not asked:
                out.append(
                    Cell(
                        mode.name if mode else "off",
                        experiment.server.tls,
                        vantage,
                        experiment.clients.batchnorm,
                        knows,
                        member=CLIENTS - 1 if vantage == "client" else None,
                        **more,
                    )
                )
    return out


def play(
    experiment: Experiment,
    wanted: Sequence[Cell],
    folder: Path,
    patch: pytest.MonkeyPatch,
    derive: bool = False,
    powers: tuple[str, ...] = (),
    waits: bool = False,
    screen: Screen | None = None,
) -> Played:
    """Run an experiment with a spy in each cell."""
    entries, run = [], RunFolder.create(folder / f"run-{secrets.token_hex(16)}")
    for number, cell in enumerate(wanted):
        tag = f"{run.path.name[-8:]}-{number}"
        entries.append(
            AdversaryEntry(
                id=f"spy-{number}",
                plugin=Component(SPY, Spy(tag, waits)),
                vantage=cell.vantage,  # type: ignore[arg-type]
                targets=cell.targets,
                rounds=cell.rounds,
                knows=cell.knows,  # type: ignore[arg-type]
                hides=cell.hides,  # type: ignore[arg-type]
                member=cell.member,
                aggregate=cell.aggregate,
                colluders=cell.colluders,
                derive=Component("spying", SpyingDerivation(tag)) if derive and cell.vantage == "server" else None,
                powers=powers if cell.vantage == "server" else (),  # type: ignore[arg-type]
            )
        )
    whole = replace(experiment, adversaries=tuple(entries))
    check_legal(whole)
    screen = screen or Screen()
    with patch.context() as watching:
        planted = Planted(whole, watching)
        outcome = simulate(whole, run, screen)
    place = workbench(whole)
    reached, models = {}, []
    for entry in entries:
        tag = entry.plugin.settings.tag
        reached[entry.id] = {data for one in spies.GOT.pop(tag, []) for data in reachable(one)}
        models += [data for model in spies.MODELS.pop(tag) for data in reachable(model)]
    for name, stored in _stored(run):
        reached[name].add(stored)
    planted.finish(place)
    planted.canaries.append(Canary("path of the run", -1, -1, run.path.name.encode(), "text"))
    sealed, opened = frozenset(planted.sealed), frozenset(planted.opened)
    named = {f"spy-{number}": replace(one, survivors=sealed, opened=opened) for number, one in enumerate(wanted)}
    return Played(named, reached, models, Search(planted.canaries), planted.canaries, outcome, screen)


def _stored(run: RunFolder) -> Iterator[tuple[str, bytes]]:
    """Whose job, and the bytes of its file and of the observations that it is made of."""
    store = JobStore(run.captures, run.jobs)
    for path in run.jobs.iterdir():
        data = path.read_bytes()
        name = json.loads(data)["adversary"]
        yield name, data
        yield from ((name, store.read("observation", one)) for one in observations_of(data))


def told(leaks: Iterable[Canary]) -> list[str]:
    """Leaks in words, each kind once a client and round."""
    return sorted({f"{one.kind} of client {one.client} in round {one.round}" for one in leaks})
