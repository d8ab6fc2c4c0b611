"""A stranger's plugins, installed in a folder of their own, which attack processes find by name like any other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsim import plugins

MODULE = '''
from dataclasses import dataclass
import os, signal, sys, time
from pathlib import Path
from typing import ClassVar

import torch

from fedsim import progress
from fedsim.adversaries.base import Job, Reconstruction


@dataclass(frozen=True)
class Spy:
    """Looks around, or does what `fault` says on client 0."""

    fault: str = ""
    run: str = ""
    weights: tuple[float, ...] = (0.1, 1e-300)
    start_file: str | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"num_examples"})
    powers: ClassVar[frozenset[str]] = frozenset()

    def capture(self, seen):
        yield Job((seen,), {"from": "capture"})

    def batches(self, device):
        return self.fault == "dies together"

    def attack_many(self, jobs, device, rngs):
        os.kill(os.getpid(), signal.SIGSEGV)

    def attack(self, job, device, rng):
        seen = job.observations[0]
        if self.fault and seen.client == 0:
            getattr(self, "_" + self.fault.replace(" ", "_"), lambda: None)()
        progress.report(1, 2, "half")
        images = torch.rand((seen.facts["num_examples"], 1, 8, 8), generator=rng)
        return Reconstruction(images, None, float(images.mean()), 1, raw=images.double(), notes=self._view())

    def _raises(self):
        raise TypeError("not this one")

    def _killed(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def _exits(self):
        sys.exit(7)

    def _babbles(self):
        for end, what in self._ends().items():
            if what.startswith("socket:"):
                os.write(int(end), b"x" * 64)
        time.sleep(60)

    def _hangs(self):
        Path(self.start_file).write_text(str(os.getpid()))
        time.sleep(600)

    def _ends(self):
        there = {}
        for end in os.listdir("/proc/self/fd"):
            try:
                there[end] = os.readlink(f"/proc/self/fd/{end}")
            except OSError:  # that of the listing itself
                pass
        return there

    def _view(self):
        def read(path):
            return Path(path).read_bytes().decode().split(chr(0))

        return {
            "number": os.getpid(),
            "argv": sys.argv,
            "command": read("/proc/self/cmdline"),
            "environment": dict(os.environ),
            "first_environment": read("/proc/self/environ"),
            "folder": os.getcwd(),
            "ends": self._ends(),
            "modules": sorted(sys.modules),
            "main": str(sys.modules["__main__"]),
            "threads": torch.get_num_threads(),
            "in_run": sorted(os.listdir(self.run)) if self.run else [],
            "settings": repr(self),
        }


@dataclass(frozen=True)
class Mean(Spy):
    """Puts together what it drew of all rounds, with a draw more."""

    def attack(self, job, device, rng):
        draw = torch.rand((1, 1, 8, 8), generator=rng)
        return Reconstruction(draw, None, float("inf"), 1, ((0, 0.1),), raw=draw.double() / 3, notes={"t": (1, 0.1)})

    def combine(self, parts, device, rng):
        assert [job.notes for job, _ in parts[::-1]] == [{"from": "capture"}] * len(parts)
        sums = sum(next(iter(job.observations[0].part("update").values())).sum() for job, _ in parts)
        raw = sum(found.raw for _, found in parts) * torch.rand((), generator=rng) + sums
        assert parts[-1][1].notes == {"t": [1, 0.1]} or parts[-1][1].notes == {"t": (1, 0.1)}
        image = raw.float().sigmoid()
        return {"a": Reconstruction(image, None, 0.5, 1, raw=raw), "b": Reconstruction(None, None, 0, 0)}
'''


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which the plugins `spy` and `mean` are installed."""
    folder = tmp_path / "site"
    metadata = folder / "strangers-1.0.dist-info"
    metadata.mkdir(parents=True)
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 1.0\n")
    points = "[fedsim.adversaries]\nspy = strangers_spy:Spy\nmean = strangers_spy:Mean\n"
    metadata.joinpath("entry_points.txt").write_text(points)
    (folder / "strangers_spy.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    plugins._named.cache_clear()
    yield folder
    plugins._named.cache_clear()
    sys.modules.pop("strangers_spy", None)
