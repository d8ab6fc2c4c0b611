"""Named places at which a test can have the process killed, as a crash or a power cut would.

`FEDSIM_FAILPOINT=checkpoint.written:3 fedsim run ...` kills the process with SIGKILL when it comes to that place for
the third time. Without the variable, a place costs a look into a dict.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "FEDSIM_FAILPOINT"

NAMES = (
    "round.asked",
    "round.collected",
    "round.aggregated",
    "round.line",
    "truth.written",
    "capture.stored",
    "checkpoint.begun",
    "checkpoint.part",
    "checkpoint.parts",
    "checkpoint.written",
    "checkpoint.pruned",
    "attack.found",
    "attack.line",
    "run.ending",
)
"""In the order in which a run comes to them. `round.asked`: the round's messages are made and not sent;
`round.collected`: the replies are there; `round.aggregated`: the model has moved; `round.line`: the round's line is
written; `truth.written`, `capture.stored`: of an observation; `checkpoint.begun`: nothing of it is written;
`checkpoint.part`: one of its files is; `checkpoint.parts`: all are but the one that makes it valid;
`checkpoint.written`: it is valid, and the oldest is still there; `checkpoint.pruned`: that is gone; `attack.found`: an
attack has its answer; `attack.line`: its line is written; `run.ending`: all is done but the manifest's last word."""

_passed: dict[str, int] = {}


def reach(name: str) -> None:
    """Say that the process has come to a place."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    place, _, count = wanted.partition(":")
    if place == name:
        _passed[name] = _passed.get(name, 0) + 1
        if _passed[name] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)
