"""Keeps a run's `truth/` out of its folder while attacks run: only scoring is told where it is then.

It is moved, within the file system, to a private folder of a name that cannot be guessed, beside the run's folder (or
in it, where nothing can be written beside it), and back when the attacks are over, however they end. What a killed
process could not move back is found by the next command on the run: the private folder says whose it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fedsim.errors import FedsimError
from fedsim.runs import RunFolder

PREFIX = ".fedsim-truth-"
WHOSE = "whose.json"
"""In the private folder: the name of the run's folder. Locked as long as the process lives that moved it."""


@contextmanager
def apart(folder: RunFolder, say: Callable[[str], None]) -> Iterator[Path]:
    """Where the truth is meanwhile. say: is told of what an earlier process left behind, and of a place that will not
    do.

    Raises FedsimError where another process is attacking the same run.
    """
    if not recover(folder, say):
        raise FedsimError(f"{folder.path}: another attack on this run is at work; wait until it has ended")
    if not folder.truth.is_dir():
        yield folder.truth
        return
    with _moved(folder) as place:
        yield place


def recover(folder: RunFolder, say: Callable[[str], None]) -> bool:
    """Move back the truth that a killed process left beside the run. False where that process lives, and is at work."""
    free = True
    run = folder.path.resolve()
    for private in [one for place in (run.parent, run) for one in sorted(place.glob(f"{PREFIX}*"))]:
        with suppress(OSError, ValueError), (private / WHOSE).open() as whose:
            if not _locked(whose):
                free &= _name(whose) != run.name
                continue
            if _name(whose) != run.name:
                continue
            if (private / "truth").is_dir() and not _holds_any(folder.truth):
                _replace(private / "truth", folder.truth)
                say(f"the truth of {folder.path} was still apart, as a killed process had left it; it is back")
            shutil.rmtree(private)
    return free


@contextmanager
def _moved(folder: RunFolder) -> Iterator[Path]:
    run = folder.path.resolve()
    private = _private_folder(run)
    try:
        with (private / WHOSE).open("w") as whose:
            # Wait: another run's `recover` may just be trying whether anybody has it.
            with suppress(OSError):  # a file system without locks
                fcntl.flock(whose, fcntl.LOCK_EX)
            json.dump({"run": run.name, "what": "truth/ of this run, apart while its attacks run"}, whose)
            whose.flush()
            os.fsync(whose.fileno())
            folder.truth.rename(private / "truth")
            try:
                yield private / "truth"
            finally:
                _replace(private / "truth", folder.truth)
    finally:
        if not (private / "truth").exists():
            shutil.rmtree(private, ignore_errors=True)


def _private_folder(run: Path) -> Path:
    """A new folder that only this user can read. Inside the run's where its parent is no place to write to, or another
    file system.
    """
    parent = run.parent
    if not os.access(parent, os.W_OK) or parent.stat().st_dev != (run / "truth").stat().st_dev:
        parent = run
    private = parent / f"{PREFIX}{secrets.token_hex(16)}"
    private.mkdir(mode=0o700)
    return private


def _replace(source: Path, target: Path) -> None:
    """Move a folder to where at most an empty one is."""
    with suppress(FileNotFoundError):
        target.rmdir()
    source.rename(target)


def _holds_any(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())


def _locked(file: IO[str]) -> bool:
    """Whether this process has the lock now; not so where another one holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _name(file: IO[str]) -> str:
    return str(json.load(file)["run"])
