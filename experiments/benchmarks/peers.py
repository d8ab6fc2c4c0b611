"""What the benchmarks here share: an environment for somebody else's package, and a line about the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path


def peer_python(folder: Path, packages: Sequence[str], imports: str) -> Path:
    """A Python that has `packages` besides all that this environment has, fedsim too; made on first use.

    packages: pip requirements, installed without what they depend on. imports: a statement that then works.
    Raises RuntimeError with the reason where that is not possible.
    """
    python = folder / "bin" / "python"
    try:
        if not python.exists():
            quietly(sys.executable, "-m", "venv", str(folder))
        purelib = quietly(str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
        shared = dict.fromkeys(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib"))
        # Not the bare paths: an editable installation is found only where the .pth files beside it are read.
        lines = [f"import site; site.addsitedir({path!r})\n" for path in shared]
        (Path(purelib) / "shared.pth").write_text("".join(lines))
        try:
            quietly(str(python), "-c", imports)
        except RuntimeError:
            print(f"installing {', '.join(packages)} in {folder}", file=sys.stderr)
            quietly(str(python), "-m", "pip", "install", "--quiet", "--no-deps", *packages)
            quietly(str(python), "-c", imports)
    except OSError as error:
        raise RuntimeError(str(error)) from error
    return python


def quietly(*command: str) -> str:
    """What a command prints. Raises RuntimeError with the last line of its errors where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"{command[0]} ended with {done.returncode}"]
        raise RuntimeError(lines[-1])
    return done.stdout


def machine(threads: int) -> str:
    """One line on what this ran on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{name}, {os.cpu_count()} logical cores, {threads} torch thread{'s' * (threads > 1)}{load}"
