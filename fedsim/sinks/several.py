"""All sinks of a run. Each works in a thread of its own: one that fails, or waits for a network, holds up nothing.

The three events go into queues. What went wrong in a thread is said at the next event, by whoever calls, once for each
sink; the sink is left out from then on.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from fedsim.experiment import Component, Experiment
from fedsim.experiment_file import as_table
from fedsim.runs import RoundRecord, RunFolder, read_lines, timed
from fedsim.sinks.base import Sink, SinkRun

PATIENCE = 60.0
"""Seconds that a run waits at its end for sinks that are behind."""

BRIEF_PATIENCE = 10.0
"""The same where a run was stopped."""

Event = Callable[[Sink], None]


class Sinks:
    """Passes what happens on to all sinks. Made by `opened`."""

    def __init__(
        self, sinks: Sequence[Component], run: SinkRun, warn: Callable[[str], None], before: Sequence[Event] = ()
    ) -> None:
        """before: what the run's folder holds already, told first."""
        self._warn = warn
        self._lanes = [_Lane(sink, run) for sink in sinks]
        for event in before:
            self._tell(event)

    def round(self, record: RoundRecord) -> None:
        """A round is over."""
        record = replace(record)  # whoever calls may go on writing into it
        self._tell(lambda sink: sink.round(record))

    def attack(self, line: Mapping[str, Any]) -> None:
        """A line of attacks.jsonl, with its `seconds`."""
        line = dict(line)
        self._tell(lambda sink: sink.attack(line))

    def end(self, status: str, facts: Mapping[str, Any]) -> None:
        """The run ended. Waits for sinks that are behind, but not for ever. A second call does nothing."""
        until = time.monotonic() + (PATIENCE if status == "done" else BRIEF_PATIENCE)
        facts = dict(facts)
        self._tell(lambda sink: sink.end(status, facts), last=True)
        for lane in self._lanes:
            if not lane.wait(max(until - time.monotonic(), 0)):
                self._warn(f"sink '{lane.name}' is not done in time and is left behind; its log may lack the last part")
        self._mention()
        self._lanes = []

    def _tell(self, event: Event, last: bool = False) -> None:
        self._mention()
        for lane in self._lanes:
            lane.tell(event, last)

    def _mention(self) -> None:
        for lane in [lane for lane in self._lanes if lane.failure is not None]:
            self._lanes.remove(lane)
            self._warn(f"sink '{lane.name}' failed and is told nothing more: {lane.failure}")


@contextmanager
def opened(
    experiment: Experiment, folder: RunFolder, warn: Callable[[str], None], resumed: int | None = None
) -> Iterator[Sinks]:
    """The sinks of a run, ended with it: `interrupted` or `failed` where the block is left by an error, and else, if
    the block did not call `end`, `done`.

    resumed: the first round that is run now, of a run that was broken off; 0 where it begins anew. rounds.jsonl and
    attacks.jsonl hold by then what it goes on from; sinks are told all of it, as they may lack the last part.
    """
    chosen = experiment.logging.sinks
    run = SinkRun(folder.path.absolute(), folder.path.absolute().name, as_table(experiment) if chosen else {}, resumed)
    sinks = Sinks(chosen, run, warn, _events_of(folder) if chosen and resumed is not None else ())
    try:
        yield sinks
    except BaseException as error:
        sinks.end("failed" if isinstance(error, Exception) else "interrupted", {})
        raise
    sinks.end("done", {})


class _Lane:
    """One sink and its thread."""

    def __init__(self, component: Component, run: SinkRun) -> None:
        self.name, self._settings, self._run = component.name, component.settings, run
        self.failure: str | None = None
        self._events: queue.SimpleQueue[tuple[Event, bool]] = queue.SimpleQueue()
        self._told = self._done = 0
        # A daemon: it does not keep a process alive whose run is over.
        self._thread = threading.Thread(target=self._work, name=f"sink {self.name}", daemon=True)
        self._thread.start()

    def tell(self, event: Event, last: bool) -> None:
        """Queue an event."""
        self._told += 1
        self._events.put((event, last))

    @property
    def waiting(self) -> int:
        """Events that it has not dealt with."""
        return self._told - self._done

    def wait(self, seconds: float) -> bool:
        """Whether the thread has ended by then."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            sink: Sink = self._settings.open(self._run)
            last = False
            while not last:
                event, last = self._events.get()
                event(sink)
                self._done += 1
        except (Exception, SystemExit) as error:
            self.failure = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _events_of(folder: RunFolder) -> list[Event]:
    """What a run's folder holds, as it was told."""

    def told(method: str, what: Any) -> Event:
        return lambda sink: getattr(sink, method)(what)

    rounds, attacks, timings = (read_lines(path) for path in (folder.rounds, folder.attacks, folder.timings))
    out = [told("round", RoundRecord.of_json(line)) for line in timed(rounds, timings) if "round" in line]
    return out + [told("attack", line) for line in timed(attacks, timings)]
