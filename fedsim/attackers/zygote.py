"""The process that attack processes are copies of: it has torch imported and nothing else.

It is started from an empty folder with an environment of a few words, before or after the run has loaded data, and gets
nothing but requests for a copy. A copy is there in some ten milliseconds, where a new process needs seconds for torch.
It holds no data and no name of a run, and neither do its copies. When the run's end of its socket closes, however that
comes, it ends all of its copies and itself.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

REQUEST = b"w"
"""With two descriptors: the socket that the copy is to serve, and a pipe on which its number is written when it begins,
and its exit code when it has ended."""

NUMBER = 8
"""Bytes of either, signed, big-endian."""

_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl: which signal a process gets when its parent ends."""


def main(control: int) -> None:
    """The life of the process. control: the descriptor of its socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.pop("PYTHONPATH", None)  # it has served
    _import_what_attacks_need()
    read_end, write_end = os.pipe()
    for end in (read_end, write_end):
        os.set_blocking(end, False)
    # From here on it ends when the run hangs up, so that it can end its copies first.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, _noted)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    with socket.socket(fileno=control) as requests:
        copies: dict[int, int] = {}
        listened: list[Any] = [requests, read_end]
        while True:
            ready = select.select(listened, [], [])[0]
            if read_end in ready:
                os.read(read_end, 4096)
                _report_ended(copies)
            if requests in ready:
                data, descriptors, _, _ = socket.recv_fds(requests, 1, 2)
                if not data:
                    break
                number = _copy(descriptors[0], [control, read_end, write_end, descriptors[1], *copies.values()])
                os.close(descriptors[0])
                copies[number] = descriptors[1]
                _write(descriptors[1], number)
    for number in copies:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def _import_what_attacks_need() -> None:
    """Modules of fedsim alone, as a plugin's own would be shared by all adversaries; none may start CUDA, which does
    not survive a copy. What is left out here, each attack's process imports for itself: seconds, in part.
    """
    # What torch imports, taking seconds, where an inversion's step is first differentiated.
    import torch._dynamo  # noqa: F401

    import fedsim.adversaries.inversion.matching
    import fedsim.adversaries.inversion.victim
    import fedsim.attackers.worker
    import fedsim.models.building  # noqa: F401


def _copy(served: int, foreign: list[int]) -> int:
    """A copy that serves a socket. Returns its process number, in this process alone."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        _end_with(parent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for descriptor in foreign:
            os.close(descriptor)
        from fedsim.attackers.worker import serve

        code = serve(socket.socket(fileno=served))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code & 0xFF)


def _end_with(parent: int) -> None:
    """Where the parent is killed, it cannot end its copies. On Linux the kernel does it then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _report_ended(copies: dict[int, int]) -> None:
    while copies:
        number, status = os.waitpid(-1, os.WNOHANG)
        if number == 0:
            return
        pipe = copies.pop(number, None)
        if pipe is not None:
            _write(pipe, os.waitstatus_to_exitcode(status))
            os.close(pipe)


def _write(pipe: int, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody wants to know any more
        os.write(pipe, number.to_bytes(NUMBER, "big", signed=True))


def _noted(signum: int, frame: FrameType | None) -> None:
    """That there is a handler makes Python write to the wakeup descriptor."""
