"""Start attack processes, each a copy of a process that has torch imported and has never seen a run."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

from fedsim.attackers import zygote
from fedsim.interrupts import deaf_to_interrupts

PATIENCE = 5.0
"""Seconds that a process gets to end by itself."""

WORDS = {
    "CC", "CXX", "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LD_PRELOAD", "LOGNAME", "MKLROOT", "PATH", "TERM",
    "TMPDIR", "TZ", "USER", "VIRTUAL_ENV", "XDG_CACHE_HOME",
}  # fmt: skip
FAMILIES = (
    "CONDA", "CUBLAS", "CUDA", "CUDNN", "DYLD_", "FLWR_", "GOMP_", "HIP_", "KMP_", "LC_", "MKL_", "NCCL_", "NUMEXPR_",
    "NVIDIA_", "OMP_", "OPENBLAS_", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTORCH_", "ROCM_", "ROCR_", "TORCH",
    "TRITON_", "VECLIB_",
)  # fmt: skip
"""What of the environment an attack gets: words, and all that begin so. It is what finds libraries, compilers and
devices and sets their threads; where data are is not among it."""

VISIBLE = "_VISIBLE_DEVICES"


class Process:
    """One attack process. socket: to talk with it, by `wire`. number: its process number."""

    def __init__(self, own: socket.socket, status: int, number: int) -> None:
        self.socket, self.number = own, number
        self._status = status
        self._code: int | None = None

    def wait_for_word(self, seconds: float | None = None) -> bool:
        """Wait until there is something to receive (True), or the process has ended without a last word (False).
        Raises TimeoutError where neither is so after that time.
        """
        ready = wait([self.socket, self._status], seconds)
        if not ready:
            raise TimeoutError
        return self.socket in ready

    def end(self, at_once: bool) -> int | None:
        """End it, if it has not ended: by hanging up, or at once. Returns its exit code (a signal's number is
        negative); None where nobody can tell.
        """
        if self._status < 0:
            return self._code
        self.socket.close()
        if not wait([self._status], 0 if at_once else PATIENCE):
            with suppress(ProcessLookupError):
                os.kill(self.number, signal.SIGKILL)
            wait([self._status], PATIENCE)
        return self._ended()

    def ended(self) -> int | None:
        """The exit code of a process that has hung up."""
        return self.end(at_once=False)

    def _ended(self) -> int | None:
        self._code = _number(self._status)
        os.close(self._status)
        self._status = -1
        return self._code


class _Zygote:
    """The running zygote of this process."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.control, theirs = socket.socketpair()
        code = f"from fedsim.attackers.zygote import main; main({theirs.fileno()})"
        with deaf_to_interrupts(), theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                stdin=subprocess.DEVNULL,
                cwd="/",
                env=environment(),
                pass_fds=[theirs.fileno()],
            )

    @property
    def lives(self) -> bool:
        """Whether it is there, and this process's own: a fork of a process has its parent's."""
        return self.owner == os.getpid() and self.process.poll() is None

    def stop(self) -> None:
        """Hang up. It ends its copies. While it still imports it has none, and would not notice: it is asked to end."""
        self.control.close()
        if self.owner != os.getpid():
            return
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


_lock = threading.Lock()
_zygote: _Zygote | None = None


def start_early() -> None:
    """Start the zygote now, so that it is ready, some seconds later, when the first attack needs it."""
    global _zygote
    with _lock:
        if _zygote is not None and not _zygote.lives:
            _zygote.stop()
            _zygote = None
        if _zygote is None:
            _zygote = _Zygote()
            atexit.register(_zygote.stop)


def launch() -> Process:
    """A new attack process. Raises OSError where none can be started."""
    start_early()
    assert _zygote is not None
    own, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    try:
        with _lock:
            socket.send_fds(_zygote.control, [zygote.REQUEST], [theirs.fileno(), write_end])
    except BaseException:
        own.close()
        os.close(read_end)
        raise
    finally:
        theirs.close()
        os.close(write_end)
    try:
        number = _number(read_end)
    except BaseException:
        own.close()
        os.close(read_end)
        raise
    if number is None:
        own.close()
        os.close(read_end)
        raise ChildProcessError("the process that attacks are started from has ended")
    return Process(own, read_end, number)


def environment() -> dict[str, str]:
    """The environment of attack processes."""
    kept = {key: value for key, value in os.environ.items() if key in WORDS or key.startswith(FAMILIES)}
    # Whether there is a GPU is asked of the driver's library: CUDA itself would not survive being copied.
    kept.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    return {**kept, "PYTHONPATH": os.pathsep.join(one for one in search_path() if Path(one).is_absolute())}


def visible_devices() -> dict[str, str]:
    """The words of the environment that say which accelerators may be used. They are told to each attack process, as
    they may have changed since the process was started that it is a copy of.
    """
    return {key: value for key, value in os.environ.items() if key.endswith(VISIBLE)}


def search_path() -> list[str]:
    """Where this process finds modules, in absolute paths; the working directory only where a package is installed in
    it. An entry that is no path, but a mark for some import hook, is left as it is.
    """
    here = Path.cwd()
    installed = any(any(here.glob(f"*.{kind}-info")) for kind in ("dist", "egg"))
    places = [str(Path(entry).absolute()) if Path(entry).exists() else entry for entry in sys.path]
    return [place for place in dict.fromkeys(places) if place != str(here) or installed]


def _number(pipe: int) -> int | None:
    """What the zygote wrote; None where it is gone."""
    data = os.read(pipe, zygote.NUMBER)
    return int.from_bytes(data, "big", signed=True) if len(data) == zygote.NUMBER else None
