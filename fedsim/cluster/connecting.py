"""Join a Ray cluster for the length of a block, or start one on this machine that ends with it.

A cluster of somebody else is left as it was: only what this process started there ends. One of our own is gone when the
block is left, however it is left; should this process be killed, the kernel takes Ray's processes along (Linux).
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from fedsim.cluster.probing import PLACE, answers, auto_address
from fedsim.errors import InputError
from fedsim.settings import RAY_PATTERN

Say = Callable[[str], None]
_FOLDER = "fedsim-ray-"
_LOCK = "lock"


@dataclass(frozen=True)
class Node:
    """A machine of a cluster. id: Ray's name of it, in hex. cpus, gpus: what Ray may give out there in all."""

    id: str
    address: str
    cpus: float
    gpus: float

    def slots(self, cpus: float, gpus: float) -> int:
        """How many processes fit that need so much. A process that needs a part of a GPU has all of it on one."""
        found = [_parts(self.cpus, cpus)] if cpus > 0 else []
        if gpus > 0:
            found.append(int(self.gpus) * _parts(1, gpus) if gpus < 1 else _parts(self.gpus, gpus))
        return min(found, default=0)


class Cluster:
    """The cluster that this process is connected to. address: as the user gave it. local: our own, on this machine."""

    def __init__(self, address: str, *, local: bool) -> None:
        self.address, self.local = address, local

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The machines that are up now, in the order of their ids."""
        found = []
        for one in ray_module().nodes():
            if one["Alive"]:
                has = one["Resources"]
                found.append(Node(one["NodeID"], one["NodeManagerAddress"], has.get("CPU", 0.0), has.get("GPU", 0.0)))
        return tuple(sorted(found, key=lambda node: node.id))

    def slots(self, cpus: float, gpus: float = 0.0) -> dict[str, int]:
        """How many processes of that size fit, by the node's id; nodes without room are left out.

        It counts what there is, not what is free: others may work on a cluster, too, and processes then wait.
        """
        found = {node.id: node.slots(cpus, gpus) for node in self.nodes}
        return {node: count for node, count in found.items() if count}

    def words(self) -> str:
        """`2 nodes with 16 CPUs and 2 GPUs`."""
        nodes = self.nodes
        parts = [_counted(len(nodes), "node"), " with ", _counted(sum(node.cpus for node in nodes), "CPU")]
        gpus = sum(node.gpus for node in nodes)
        return "".join([*parts, f" and {_counted(gpus, 'GPU')}" if gpus else ""])


def ray_module() -> ModuleType:
    """Ray, imported without its usage reports. Raises InputError with the remedy where it is not installed."""
    # Ray reads this when it is first imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(
            f"{PLACE}: Ray is not installed here ({error}); pip install 'fedsim-adversarial[ray]'"
        ) from error
    return ray  # type: ignore[no-any-return, unused-ignore]


@contextmanager
def connected(
    address: str, say: Say = lambda text: None, *, cpus: int | None = None, gpus: int | None = None
) -> Iterator[Cluster]:
    """A cluster for the length of the block.

    address: `local` starts one here; `auto` (the one that runs here), `HOST:PORT` and `ray://HOST:PORT` join one. cpus,
    gpus: what a local one may give out, where that is not all of the machine. say: gets a line about what was joined.
    Raises InputError where there is no such cluster, or none that this Python and Ray can work with.
    """
    if not re.fullmatch(RAY_PATTERN, address):  # before Ray is imported, which takes seconds
        raise InputError(f"{PLACE}: {address!r}: must be local, auto, ray://HOST:PORT or HOST:PORT")
    ray = ray_module()
    with _exits_kept():
        if ray.is_initialized():
            yield _joined_already(ray, address)
        elif address == "local":
            with _own(ray, cpus, gpus) as cluster:
                yield cluster
        else:
            with _joined(ray, address, say) as cluster:
                yield cluster


@contextmanager
def _joined(ray: ModuleType, address: str, say: Say) -> Iterator[Cluster]:
    """Somebody else's cluster."""
    target = auto_address(ray, say) if address == "auto" else address
    answers(target)
    empty = tempfile.mkdtemp(prefix="fedsim-empty-")
    try:
        with _signals_wait():
            _init(ray, address, empty, address=target)
        cluster = Cluster(target, local=False)
        say(f"joined the Ray cluster at {target}: {cluster.words()}")
        yield cluster
    finally:
        with _signals_wait():
            ray.shutdown()
            shutil.rmtree(empty, ignore_errors=True)


@contextmanager
def _own(ray: ModuleType, cpus: int | None, gpus: int | None) -> Iterator[Cluster]:
    """Ray on this machine, with its files in a folder of its own: others find it neither by name nor by accident."""
    _sweep_up()
    base = Path("/tmp")
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=base if os.access(base, os.W_OK) else None))
    held = _locked(folder / _LOCK)
    try:
        # Ray's helpers that the kernel does not take along, should this process be killed, ask for its head that long.
        with _signals_wait(), _environment("RAY_gcs_rpc_server_reconnect_timeout_s", "10"):
            options = {"num_cpus": cpus, "num_gpus": gpus, "include_dashboard": False, "_temp_dir": str(folder)}
            (folder / "empty").mkdir()
            _init(ray, "local", str(folder / "empty"), address="local", **options)
        yield Cluster("local", local=True)
    finally:
        with _signals_wait():
            ray.shutdown()
            if held is not None:
                os.close(held)
            _removed(folder)


def _init(ray: ModuleType, asked: str, empty: str, **options: Any) -> None:
    try:
        # Ray puts the folder in which it is started in front of its workers' path: one in it that is called like a
        # package would stand in for that. Its own processes stay in the folder, so it is there as long as they are.
        with warnings.catch_warnings(), chdir(empty):
            warnings.simplefilter("ignore")
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        # What becomes of workers is said by those who use them; Ray would write it between the lines of our output.
        ray._private.worker._worker_logs_enabled = False
    except (Exception, SystemExit) as error:  # Ray ends the process where its own parts do not start
        with suppress(Exception):
            ray.shutdown()
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{PLACE}: '{asked}': {reason}; {_remedy(asked, reason)}") from error


def _remedy(asked: str, reason: str) -> str:
    if "ersion" in reason:
        return "install the same versions of Python (to the last digit) and Ray on all machines"
    if asked == "local":
        return "`ray.init(address='local')` in Python shows more"
    return "a machine that is no part of the cluster joins it by ray://HOST:10001, one that is by HOST:6379 or auto"


def _joined_already(ray: ModuleType, address: str) -> Cluster:
    """The cluster that somebody connected this process to before us, and whose connection is his to end."""
    there = ray.get_runtime_context().gcs_address
    if address not in ("auto", there):
        raise InputError(
            f"{PLACE}: '{address}': this process is already connected to Ray at {there}; use 'auto' to work there"
        )
    return Cluster(there, local=False)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """SIGINT and SIGTERM that come within wait for the end, as half a start or half an end leaves processes behind.

    Handlers are afterwards what they were: Ray sets one of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {int(number): signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for number in came[:1]:
            signal.raise_signal(number)


@contextmanager
def _exits_kept() -> Iterator[None]:
    """An exit that SIGTERM's handler raises keeps its code. Ray, called at that moment, would make another of it."""
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    handler, raised = before, list[SystemExit]()

    def note(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except SystemExit as stop:
            raised.append(stop)
            raise

    signal.signal(signal.SIGTERM, note)
    try:
        yield
    except SystemExit:
        if raised:
            raise raised[0] from None
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _environment(key: str, value: str) -> Iterator[None]:
    """A variable for the processes that are started within, unless the user has set it."""
    if key in os.environ:
        yield
        return
    os.environ[key] = value
    try:
        yield
    finally:
        del os.environ[key]


def _sweep_up() -> None:
    """Remove what runs left behind that were killed: their folder is there, and nobody holds its lock."""
    for lock in Path("/tmp").glob(f"{_FOLDER}*/{_LOCK}"):
        with suppress(OSError):
            if lock.stat().st_uid != os.getuid() or time.time() - lock.stat().st_mtime < 60:
                continue
            held = _locked(lock)
            if held is not None:
                os.close(held)
                shutil.rmtree(lock.parent, ignore_errors=True)


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock on a file; None where another process holds it, or there are no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    held = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held


def _removed(folder: Path) -> None:
    """Remove a folder in which processes that are just ending may still write."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _parts(whole: float, part: float) -> int:
    return math.floor(whole / part + 1e-9)


def _counted(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
