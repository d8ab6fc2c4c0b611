"""Plugins of a stranger that go wrong in every way; installed by the fixture of that name, found like any other.

Every process that works for an experiment imports this file from there, so that it is one of its own.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from fedsim.adversaries.base import Job, Observation, Reconstruction

ENTRY_POINTS = """
[fedsim.adversaries]
trying = strangers:Trying
broken = strangers_broken:Broken
elsewhere = strangers_elsewhere:Elsewhere

[fedsim.defenses]
failing = strangers:Failing
dawdling = strangers:Dawdling
"""

MODULES = {
    "strangers_broken": "raise RuntimeError('this plugin is broken')\n",
    # It is imported where experiments are read, and not where attacks run.
    "strangers_elsewhere": "import sys\n"
    "if 'fedsim.experiment_file' not in sys.modules:\n"
    "    raise OSError('this plugin finds no library here')\n"
    "from strangers import Trying as Elsewhere\n",
}


def _parent(number: int) -> int:
    return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])


def _first_time(folder: str | None, what: str) -> bool:
    """Whether nobody has done this before; notes it."""
    assert folder is not None
    note = Path(folder) / what
    with note.open("a") as file:
        file.write(f"{os.getpid()} {os.environ.get('RAY_RAYLET_PID', '0')}\n")
    return len(note.read_text().splitlines()) == 1


@dataclass(frozen=True)
class Trying:
    """Draws images, or does what `fault` says. folder: for notes of who tried what."""

    fault: str = ""
    folder: str | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"num_examples"})
    powers: ClassVar[frozenset[str]] = frozenset()

    def capture(self, seen: Observation) -> Iterable[Job]:
        """One job, where that does not fail."""
        if self.fault == "capture":
            raise KeyError("no such thing was captured")
        yield Job((seen,))

    def attack(self, job: Job, device: torch.device, rng: torch.Generator) -> Reconstruction:
        """Images by chance."""
        seen = job.observations[0]
        images = torch.rand((seen.facts["num_examples"], 1, 8, 8), generator=rng)
        what = f"{seen.client} {seen.round}"
        if self.fault == "attack":
            raise TypeError("not this one")
        if self.fault == "NaN":
            images[0, 0, 0, 0] = float("nan")
        if self.fault == "shape":
            images = images[..., :3]
        if self.fault == "for ever":
            while True:
                time.sleep(0.05)
        if self.fault == "late":
            time.sleep(os.urandom(1)[0] / 2000)
        if self.fault == "slow" and self.folder:
            _first_time(self.folder, what)
            time.sleep(0.3)
        # This process is one of the zygote's, and that one of the Ray worker's.
        every_time = self.fault == "worker killed" and (seen.client, seen.round) == (0, 1)
        if every_time or (self.fault == "worker killed once" and _first_time(self.folder, what)):
            os.kill(_parent(_parent(os.getpid())), signal.SIGKILL)
            time.sleep(60)
        return Reconstruction(images, None, float(images.mean()), 1)


@dataclass(frozen=True)
class Failing:
    """Does what `fault` says in one round, and nothing in the others."""

    fault: str = "exception"
    round_: int = 2
    folder: str | None = None

    def perturb_at(self, update: Any, site: Any, rng: torch.Generator) -> tuple[Any, Mapping[str, torch.Tensor]]:
        """The update as it is."""
        if self.fault == "slow" and self.folder:
            _first_time(self.folder, f"round {site.round}")
            time.sleep(0.3)
        elif site.round == self.round_:
            if self.fault == "exception":
                raise RuntimeError("this client has no more memory")
            if self.fault == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "hang":
                time.sleep(600)
        return update, {}


@dataclass(frozen=True)
class Dawdling:
    """Takes its time, another one in every run: whoever is asked first need not be the first to answer."""

    def perturb(self, update: Any, rng: torch.Generator) -> Any:
        """The update as it is."""
        time.sleep(os.urandom(1)[0] / 2000)
        return update
