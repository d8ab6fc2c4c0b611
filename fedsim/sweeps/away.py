"""Work that is done where the sweep's folder cannot be reached: what has to travel there, and what comes back.

A node of a cluster works in a temporary folder of its own. What it made there comes back in pieces, and is put into the
sweep's folder under its name when all of it is there, so that a run is either whole or not there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedsim import __version__
from fedsim import manifest as manifests
from fedsim.errors import FedsimError
from fedsim.experiment import Experiment
from fedsim.experiment_file import as_toml
from fedsim.runs import RunFolder, write_whole
from fedsim.sweeps.pool import Tell, Work
from fedsim.sweeps.runner import Order

PIECE = 32 * 2**20
"""Bytes of a piece, at most."""

PREFIX = "fedsim-sweep-"
"""What names of temporary folders begin with."""

_LOCK, _ROOM = "lock", "room"

File = tuple[str, bytes | None]
"""A part of a file: its path below the folder that travels, and bytes to append to it; None for a folder. The path is
empty where a single file travels."""

Piece = list[File]


@dataclass(frozen=True)
class Parcel:
    """An order, as it is sent away. sweep: a name of its own. command: the words of the command line, for the manifest.
    place: where the sweep was started; relative paths are looked up there, if there is such a folder.
    """

    order: Order
    sweep: str = ""
    command: tuple[str, ...] = field(default_factory=lambda: tuple(sys.argv))
    place: str = field(default_factory=lambda: str(Path.cwd()))
    version: str = __version__


def models_of(order: Order) -> list[str]:
    """Paths of the models that the order's experiments start from; they travel with it."""
    experiments = [order.experiment, order.baseline] if order.baseline else [order.experiment]
    return list(dict.fromkeys(one.checkpoint for one in experiments if one.checkpoint))


def carry_out(parcel: Parcel, models: Mapping[str, bytes], work: Work, tell: Tell, room: Path) -> tuple[str, Any]:
    """Do what a parcel orders in an empty folder. Returns ("done", answer) or ("failed", reason), as a pool's worker
    tells it. What was made is `room / "made"` then, if anything was.

    models: the content of each of `models_of`, by path.
    """
    if parcel.version != __version__:
        return "failed", f"fedsim {__version__} is installed there, and {parcel.version} here; install the same on all"
    order, moved = parcel.order, {}
    for number, (path, content) in enumerate(models.items()):
        moved[path] = str(room / f"model-{number}.safetensors")
        Path(moved[path]).write_bytes(content)
    sent = replace(
        order,
        experiment=_here(order.experiment, moved),
        baseline=_here(order.baseline, moved) if order.baseline else None,
        folder=room / "made",
    )

    def plain(text: str) -> str:
        """In words of the sweep's own machine."""
        for path, there in {**moved, str(order.folder): str(sent.folder)}.items():
            text = text.replace(there, path)
        return text

    with _as_if_at(parcel):
        try:
            answer = work(sent, tell)
        except FedsimError as error:  # worded for people already
            return "failed", plain(str(error))
        except Exception as error:
            return "failed", plain(f"{type(error).__name__}: {error}")
        finally:
            _resolve(sent.folder, order.experiment)
    return "done", answer


@contextmanager
def temporary_room(sweep: str = "") -> Iterator[Path]:
    """A folder that goes at the end. One whose process was killed goes when the next one is made on this machine.

    sweep: that it belongs to, for `clear_rooms_of`.
    """
    for lock in _locks():
        _clear(lock)
    room = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{sweep}-"))
    try:
        with (room / f"{_LOCK}-not-yet").open("w") as lock_file:
            # Locked before it has its name, so that nobody ever finds the lock of a living process open.
            fcntl.flock(lock_file, fcntl.LOCK_EX)
            Path(lock_file.name).rename(room / _LOCK)
            (room / _ROOM).mkdir()
            try:
                yield room / _ROOM
            finally:
                _remove(room)
    finally:
        _remove(room)  # where an interrupt came in the midst of that


def clear_rooms_of(sweep: str, seconds: float) -> None:
    """Remove the folders of a sweep whose processes are being killed, as soon as these are gone."""
    deadline = time.monotonic() + seconds
    for lock in _locks(sweep):
        while not _clear(lock) and lock.exists() and time.monotonic() < deadline:
            time.sleep(0.05)


def _locks(sweep: str = "") -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"{PREFIX}{sweep}*/{_LOCK}"))


def _clear(lock: Path) -> bool:
    """Remove a folder, unless its process is there."""
    with suppress(OSError), lock.open("r+") as file:  # another user's, or gone by now
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(lock.parent)
        return True
    return False


def _remove(room: Path) -> None:
    """The lock last, so that what is left of this, too, is removed by the next one."""
    shutil.rmtree(room / _ROOM, ignore_errors=True)
    shutil.rmtree(room, ignore_errors=True)


def packed(made: Path, most: int = PIECE) -> Iterator[Piece]:
    """A folder with all that is in it, or a file, in pieces of at most so many bytes; none where there is nothing."""
    piece: Piece = []
    room = most
    for path, content in _parts(made, most):
        size = len(content or b"")
        if piece and size > room:
            yield piece
            piece, room = [], most
        piece.append((path, content))
        room -= size
    if piece:
        yield piece


class Arrival:
    """Pieces that come in, for a place in the sweep's folder. `settle` puts them there, all at once."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._beside = target.with_name(f".{target.name}.incoming")
        self.drop()

    def add(self, piece: Piece) -> None:
        """Take a piece. Raises OSError where it cannot be written."""
        self._beside.parent.mkdir(parents=True, exist_ok=True)
        for path, content in piece:
            file = self._beside / path if path else self._beside
            if content is None:
                file.mkdir(parents=True, exist_ok=True)
                continue
            with file.open("ab") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())

    def settle(self) -> None:
        """Put what has come in its place, instead of what was there."""
        if not self._beside.exists():
            return
        if self._target.is_dir():
            shutil.rmtree(self._target)
        self._beside.replace(self._target)

    def drop(self) -> None:
        """Forget what has come."""
        if self._beside.is_dir():
            shutil.rmtree(self._beside)
        else:
            self._beside.unlink(missing_ok=True)


def _parts(made: Path, most: int) -> Iterator[File]:
    """Folders before what is in them, in the order of names."""
    if not made.exists():
        return
    for path in [made, *sorted(made.rglob("*"))]:
        name = "" if path == made else path.relative_to(made).as_posix()
        if path.is_dir():
            yield name, None
            continue
        with path.open("rb") as file:
            content = file.read(most)
            yield name, content
            while content := file.read(most):
                yield name, content


def _here(experiment: Experiment, moved: Mapping[str, str]) -> Experiment:
    """The experiment as it is run there: from the model that came with it, and without a cluster of its own."""
    runtime = experiment.runtime
    # Of several GPUs the node shows a task its own alone, which is the first one then.
    device = "cuda" if runtime.device.startswith("cuda") else runtime.device
    runtime = replace(runtime, grid="inline", attacks="after", device=device)
    checkpoint = moved[experiment.checkpoint] if experiment.checkpoint else None
    return replace(experiment, runtime=runtime, checkpoint=checkpoint)


def _resolve(made: Path, experiment: Experiment) -> None:
    """Let the run say what it was asked for, and not where on the node its model lay."""
    run = RunFolder(made)
    if not run.experiment.is_file():
        return
    text = as_toml(experiment)
    write_whole(run.experiment, text)
    if told := manifests.read(run):
        manifests.write(run, {**told, "experiment_sha256": hashlib.sha256(text.encode()).hexdigest()})


@contextmanager
def _as_if_at(parcel: Parcel) -> Iterator[None]:
    """With the command line, and in the folder, of the sweep."""
    command, place = sys.argv, Path.cwd()
    sys.argv = list(parcel.command)
    with suppress(OSError):
        os.chdir(parcel.place)
    try:
        yield
    finally:
        sys.argv = command
        os.chdir(place)
