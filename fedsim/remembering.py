"""A run's checkpoints: what is put into them, and how a run that was broken off takes it up again.

All that a round depends on is in them: the server's parameters, statistics, strategy and privacy ledger, the clients'
states (memories of defenses, own statistics, ledgers, keys), what adversaries have captured and remember, and the
global generators. Draws of fedsim's own need no state; see `fedsim.seeding`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from typing import Any

from fedsim.errors import FedsimError
from fedsim.experiment import Experiment
from fedsim.grids.watched import WatchedGrid
from fedsim.runs import RoundRecord, RunFolder, cut, read_lines, whole_lines
from fedsim.server.app import Rounds
from fedsim.states import chance
from fedsim.states.clients import ClientStates
from fedsim.states.store import Checkpoint, Checkpoints
from fedsim.watching import Watch

Say = Callable[[str], None]


class Memory:
    """Writes the checkpoints of a run, and goes on from one. warnings: of the run so far, kept in them, too."""

    def __init__(
        self, experiment: Experiment, folder: RunFolder, grid: WatchedGrid, watch: Watch, warnings: list[str], say: Say
    ) -> None:
        self._experiment, self._folder, self._watch = experiment, folder, watch
        self._warnings, self._say = warnings, say
        self._checkpoints = Checkpoints(folder.resume)
        self._clients = ClientStates(grid)
        self.facts: dict[str, Any] = {}
        """What else the run has to know when it goes on: JSON data."""

    def take_up(self) -> tuple[Mapping[str, Any] | None, list[RoundRecord]]:
        """Bring the run's folder, its clients and adversaries to where the newest whole checkpoint has them.

        Returns the server's state, None where there is no checkpoint and the run begins anew, and the records of the
        rounds that are over.
        """
        checkpoint = self._checkpoints.latest(self._say)
        if checkpoint is not None:
            try:
                self._restore(checkpoint)
                records = [RoundRecord.of_json(line) for line in read_lines(self._folder.rounds)]
                return checkpoint.state["run"]["server"], records
            except FedsimError as error:
                self._say(
                    f"{error}; so the checkpoint of round {checkpoint.round} is of no use, and the run begins anew"
                )
        self._begin_anew()
        return None, []

    def keep(self, rounds: Rounds) -> None:
        """Write a checkpoint, if one is due after this round."""
        every, last = self._experiment.runtime.checkpoint_every, rounds.done == self._experiment.rounds
        if last and not every:
            self._checkpoints.remove()  # of an earlier try, with what clients keep for themselves
        if not every or (rounds.done % every and not last):
            return
        # As one part: a file, and a wait for the disk, for each would cost more than it spares.
        whole = {
            "server": rounds.state(),
            "watch": self._watch.state(),
            "plugins": self._plugins(),
            "generators": chance.global_generators(),
            "warnings": list(self._warnings),
            "facts": self.facts,
            "rounds": _size(self._folder, "rounds"),
            "derived": _size(self._folder, "derived"),
        }
        state = {"run": whole}
        if last:
            # Clients are asked no more. What they keep for themselves need not lie there while attacks run.
            self._checkpoints.write(rounds.done, state, kept=1)
        else:
            states, same = self._clients.changed()
            self._checkpoints.write(rounds.done, state | states, same=same)

    def forget(self) -> None:
        """Remove the checkpoints of a run that is over."""
        self._checkpoints.remove()

    def _restore(self, checkpoint: Checkpoint) -> None:
        folder, run = self._folder, checkpoint.state["run"]
        cut(folder.rounds, run["rounds"])
        cut(folder.derived, run["derived"])
        self._watch.restore(run["watch"])
        for entry, held in run["plugins"].items():
            for plugin, one in zip(self._stateful(entry), held, strict=True):
                plugin.load_state_dict(one)
        self._clients.restore(checkpoint.state)
        self.facts = dict(run["facts"])
        chance.restore(run["generators"])
        # What was said in taking it up, of damage above all, stays said.
        self._warnings[:] = [*run["warnings"], *(one for one in self._warnings if one not in run["warnings"])]
        if checkpoint.round < self._experiment.rounds:
            folder.attacks.unlink(missing_ok=True)
        else:
            whole_lines(folder.attacks)

    def _begin_anew(self) -> None:
        """Leave nothing of an earlier try that would be taken for this one's."""
        self._checkpoints.remove()
        folder = self._folder
        for file in (folder.rounds, folder.attacks, folder.derived, folder.timings):
            file.unlink(missing_ok=True)
        for place in (folder.captures, folder.jobs, folder.truth, folder.reconstructions, folder.checkpoints):
            shutil.rmtree(place, ignore_errors=True)
            if place != folder.checkpoints:
                place.mkdir(exist_ok=True)

    def _plugins(self) -> dict[str, list[Any]]:
        return {
            entry.id: [plugin.state_dict() for plugin in self._stateful(entry.id)]
            for entry in self._experiment.adversaries
        }

    def _stateful(self, name: str) -> list[Any]:
        """Those of an adversary's plugins that remember: they say so by `state_dict` and `load_state_dict`."""
        entry = next(one for one in self._experiment.adversaries if one.id == name)
        plugins = [entry.plugin.settings, *([entry.derive.settings] if entry.derive else [])]
        return [one for one in plugins if hasattr(one, "state_dict")]


def _size(folder: RunFolder, name: str) -> int:
    path = getattr(folder, name)
    return path.stat().st_size if path.exists() else 0
