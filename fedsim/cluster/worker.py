"""The process on a cluster that plays clients, any of them: what one remembers comes and goes with its messages."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

MOST_NOTES = 20
"""Texts that go back with an answer."""
CONTEXT_BYTES = 600 * 2**20
"""Of a GPU's memory, about, what CUDA takes for each process before it has any tensor."""

Parts = tuple[Callable[[], Any], Callable[[], object] | None, int]
"""What makes the app, what else is to be loaded (or None), and the run's id."""


class ClientWorker:
    """A Ray actor. Heavy imports are in its methods, so that the driver may hold the class without them."""

    def __init__(self, threads: int, gpus: float) -> None:
        """threads: of torch. gpus: the part of a GPU that is this process's; below 1 it caps the memory."""
        # Before torch is imported: threads that wait for one another must not spin.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._threads, self._gpus = threads, gpus
        self._app: Any = None
        self._run_id = 0
        self._notes = _Notes()

    def prepare(self, parts: Parts) -> tuple[str, str | None, bool, list[str]]:
        """Load what every message needs. Returns the machine's address, why this process cannot work (None: it can),
        whether that is for bad input, and what was warned of.
        """
        from ray.util import get_node_ip_address

        from fedsim.errors import FedsimError, InputError

        make_app, prepare, self._run_id = parts
        reason, bad_input = None, False
        try:
            self._settle()
            self._app = make_app()
            if prepare is not None:
                prepare()
        except FedsimError as error:
            reason, bad_input = str(error), isinstance(error, InputError)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        return get_node_ip_address(), reason, bad_input, self._notes.taken()

    def work(self, bundle: Sequence[Any] | None, tasks: Sequence[Any]) -> tuple[list[Any], float, list[str]]:
        """Answer messages. bundle: the arrays that many of them have. tasks: of each message, itself, the client's node
        and that one's configuration and state. Returns of each its reply and the state afterwards; the seconds that all
        took; and what was warned of.
        """
        from flwr.app import Context

        from fedsim.grids import plain
        from fedsim.grids.answering import answered

        start, out = time.perf_counter(), []
        shared = [plain.unpack_array(one) for one in bundle or ()]
        for packed, node, config, state in tasks:
            # A client may write to what is its own.
            own = plain.unpack_content(state, copied=True)
            context = Context(run_id=self._run_id, node_id=node, node_config=config, state=own, run_config={})
            reply = answered(self._app, plain.unpack_message(packed, shared), context)
            out.append((plain.pack_message(reply), plain.pack_content(context.state)))
        return out, time.perf_counter() - start, self._notes.taken()

    def _settle(self) -> None:
        import torch

        from fedsim.grids.flower_internals import take_identity

        torch.set_num_threads(self._threads)
        if 0 < self._gpus < 1 and torch.cuda.is_available():
            context = CONTEXT_BYTES / torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(max(self._gpus - context, self._gpus / 2), 0)
        take_identity(self._run_id)


class _Notes(logging.Handler):
    """What the process warns of, until the driver gets it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: dict[str, None] = {}
        logging.getLogger().addHandler(self)
        warnings.showwarning = self._warned

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record of a log."""
        self._texts.setdefault(record.getMessage())

    def taken(self) -> list[str]:
        """All texts since the last time."""
        texts, self._texts = list(self._texts), {}
        return texts[:MOST_NOTES]

    def _warned(self, message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
        self._texts.setdefault(f"{category.__name__}: {message}")
