"""What goes to an attack process, and what is in its memory while it works: its jobs, and nothing else of the run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leak_rules import Verdict
from leaking import CLIENTS, GAP, Federation, Played, Screen, cells, play, told
from spies import GO_ON

from fedsim import attacks
from fedsim.adversaries import wiretap
from fedsim.adversaries.storage import JobStore
from fedsim.attackers import launching, wire

PAGE = os.sysconf("SC_PAGE_SIZE")
PRESENT, SWAPPED, EXCLUSIVE = (np.uint64(1 << bit) for bit in (63, 62, 56))
"""Flags of a page in /proc/PID/pagemap: in memory, swapped out, mapped by this process alone."""

SECRETS = frozenset(
    {"experiment's seed", "a client's seed", "path of the run", "path of the data", "images", "held-out images"}
)
"""Some of what no process is ever told: there must be canaries of all of them."""


@dataclass
class Pipes:
    """All bytes between the run and attack processes, by the tag of the spy that works there."""

    said: dict[str, list[bytes]] = field(default_factory=dict, repr=False)
    """To the process, and from it."""
    _tags: dict[int, str] = field(default_factory=dict)

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        send, receive = wire.send, wire.receive

        def sends(to: Any, header: Any, body: bytes = b"") -> None:
            if "plugin" in header:
                self._tags[to.fileno()] = header["plugin"]["tag"]
            self._note(to, header, body)
            send(to, header, body)

        def receives(source: Any) -> wire.Message:
            message = receive(source)
            self._note(source, message.header, message.body)
            return message

        patch.setattr(wire, "send", sends)
        patch.setattr(wire, "receive", receives)

    def _note(self, end: Any, header: Any, body: bytes) -> None:
        said = self.said.setdefault(self._tags[end.fileno()].rpartition("-")[2], [])
        said += [json.dumps(dict(header)).encode(), bytes(body)]


@dataclass
class Looking(Screen):
    """Reads the memory of each attack process while its spy waits.

    memory: by the number of the spy. refused: why the kernel did not let it.
    """

    memory: dict[str, list[bytes]] = field(default_factory=dict, repr=False)
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def attack(self, name: str, done: int, total: int, note: str) -> None:
        if done != 1 or total != 2:
            return
        number = int(note)
        assert number != os.getpid()
        try:
            self.memory.setdefault(name.partition(",")[0].rpartition("-")[2], []).extend(written(number))
        except PermissionError as error:
            self.refused.append(str(error))
        finally:
            os.kill(number, GO_ON)


def written(number: int) -> Iterator[bytes]:
    """Every page of memory that an attack process has written to, neighbours together. What it still shares with the
    process that it is a copy of was there before any run. Raises PermissionError where the kernel forbids it.
    """
    place = Path(f"/proc/{number}")
    ranges = re.findall(r"^(\w+)-(\w+) r\S* \S+ \S+ \S+[ \t]*(.*)$", (place / "maps").read_text(), re.M)
    with (place / "mem").open("rb", 0) as memory, (place / "pagemap").open("rb", 0) as pages:
        for first, last, name in ranges:
            if name.startswith("[v"):  # the kernel's own
                continue
            start, end = int(first, 16) // PAGE, int(last, 16) // PAGE
            pages.seek(8 * start)
            flags = np.frombuffer(pages.read(8 * (end - start)), "<u8")
            own = (flags & SWAPPED != 0) | ((flags & PRESENT != 0) & (flags & EXCLUSIVE != 0))
            edges = np.flatnonzero(np.diff(np.concatenate([[False], own, [False]]).astype(np.int8)))
            for begin, stop in edges.reshape(-1, 2).tolist():
                memory.seek((start + begin) * PAGE)
                yield memory.read((stop - begin) * PAGE)
    yield (place / "environ").read_bytes()
    yield (place / "cmdline").read_bytes()


def attacked(
    mode: str, federation: Federation, folder: Path, patch: pytest.MonkeyPatch
) -> tuple[Played, Pipes, Looking]:
    """A run with attacks in processes: at every place, with and without knowledge."""
    experiment = federation.experiment(mode, False, "share_running", runtime={"isolation": "process"})
    wanted = cells(experiment, knowledge=[(), ("labels",)])
    pipes, screen = Pipes(), Looking()
    with patch.context() as watching:
        pipes.watch(watching)
        played = play(experiment, wanted, folder, watching, waits=True, screen=screen)
    assert not played.screen.warnings
    assert {line["status"] for line in played.outcome.attacks} == {"done"}
    assert {one.kind for one in played.canaries} >= SECRETS
    assert len(pipes.said) == len(played.cells) == 6
    return played, pipes, screen


def check(played: Played, number: str, pieces: list[bytes]) -> None:
    """All that a process should have, and nothing else."""
    name = f"spy-{number}"
    cell, found = played.cells[name], played.search(GAP.join(pieces))
    leaked = told(played.leaks(name, found))
    assert not leaked, cell.name
    # Words with their keys stand in quotes that are escaped once more in a file of tensors.
    must = {one for one in played.canaries if cell.verdict(one) is Verdict.MUST and one.form != "text"}
    missed = told(must - found)
    assert not missed, f"the search is blind: {cell.name}"


@pytest.mark.parametrize("mode", ["off", "ideal", "secagg+"])
def test_a_process_has_its_jobs_and_nothing_else(
    mode: str, site: None, federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the pipe in both directions, and in all memory that it has written to by the middle of its attack."""
    played, pipes, screen = attacked(mode, federation, tmp_path, monkeypatch)
    for number, said in pipes.said.items():
        check(played, number, said)
    over = played.search.scanned
    if screen.refused:
        pytest.skip(f"the pipes are clean, but the kernel lets nobody read a process's memory: {screen.refused[0]}")
    assert set(screen.memory) == set(pipes.said)
    for number, pieces in screen.memory.items():
        check(played, number, pieces)
    within = played.search.scanned - over
    print(f"\n{mode}: {len(pipes.said)} processes: {over:,} bytes over pipes, {within:,} bytes of memory, 0 leaks")


def test_a_hole_in_the_wall_around_a_process_is_found(
    site: None, federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is told where the run is, and with which seed, and whose jobs hold other data."""
    runs: list[str] = []
    create, path, known = JobStore.__init__, launching.search_path, wiretap.Wiretap._known

    def creates(store: Any, captures: Path, jobs: Path) -> None:
        runs.append(str(captures.parent))
        create(store, captures, jobs)

    def knows(one: Any, client: int, round_: int, item: str, heard: Any) -> Any:
        return {**known(one, client, round_, item, heard), **known(one, CLIENTS - 1, round_, "own_data", heard)}

    monkeypatch.setattr(JobStore, "__init__", creates)
    monkeypatch.setattr(launching, "search_path", lambda: [*path(), *runs[-1:]])
    monkeypatch.setattr(attacks.Attacks, "_seed", lambda runner, address: runner.experiment.seed)
    monkeypatch.setattr(wiretap.Wiretap, "_known", knows)
    played, pipes, screen = attacked("off", federation, tmp_path, monkeypatch)
    for number, said in pipes.said.items():
        cell, name = played.cells[f"spy-{number}"], f"spy-{number}"
        expected = {"path of the run", "experiment's seed"}
        expected |= {"images"} if cell.knows and cell.vantage != "client" else set()
        for where in [said] if screen.refused else [said, screen.memory[number]]:
            found = {one.kind for one in played.leaks(name, played.search(GAP.join(where)))}
            assert found >= expected
