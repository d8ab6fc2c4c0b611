"""One experiment, start to finish. The only module that knows clients, server and adversaries alike.

The way of a gradient: server round loop -> grid -> client trains and defends -> grid -> wiretap -> adversary's jobs ->
attacks -> scoring -> report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from flwr.app import Context, RecordDict
from torch import Tensor

from fedsim import facts, truth
from fedsim.adversaries import threat
from fedsim.adversaries.tampering import Tampering
from fedsim.adversaries.wiretap import Wiretap
from fedsim.attack import Attack
from fedsim.attacks import Attacks
from fedsim.built_checks import check_built
from fedsim.clients.vectorized import Vectorized, ahead_of
from fedsim.clients.workbench import Workbench, workbench
from fedsim.experiment import AdversaryEntry, Experiment
from fedsim.failpoints import reach
from fedsim.grids.inline import InlineGrid
from fedsim.models import checkpoints
from fedsim.placing import as_on_workers, attack_tasks, grid_of
from fedsim.progress import Screen
from fedsim.remembering import Memory
from fedsim.report.formats import counted, numbered
from fedsim.runs import RoundRecord, RunFolder, append_round, read_lines, remove_halves, write_whole
from fedsim.server.app import Rounds, server_app
from fedsim.sinks.several import Sinks, opened
from fedsim.watching import Watch
from fedsim.witness import Witness

if TYPE_CHECKING:
    from fedsim.cluster.connecting import Cluster


@dataclass
class Outcome:
    """What a run came to. `quarantined` counts attacks whose plugin failed."""

    rounds: list[RoundRecord] = field(default_factory=list)
    attacks: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def quarantined(self) -> int:
        """How many attacks failed."""
        return sum(line["status"] == "failed" for line in self.attacks)


def simulate(
    experiment: Experiment, folder: RunFolder, screen: Screen, *, resume: bool = False, cluster: Cluster | None = None
) -> Outcome:
    """Train the federation under the adversaries' eyes, then run their attacks and score them.

    cluster: where, if the experiment asks for one.
    resume: go on from the folder's newest whole checkpoint, if it has one. Raises InputError for what only a built
    model can show to be wrong, before round 0.
    """
    asked = experiment
    if cluster is not None:
        experiment = as_on_workers(experiment)
    if experiment.runtime.threads:
        torch.set_num_threads(experiment.runtime.threads)
    place = workbench(experiment)
    check_built(experiment, place)
    with ExitStack() as stack:
        return _Simulation(asked, experiment, folder, screen, place, cluster, stack).run(resume)


class _Simulation:
    """A run, and all that takes part in it. asked: the experiment as it was given, by which attacks go."""

    def __init__(
        self,
        asked: Experiment,
        experiment: Experiment,
        folder: RunFolder,
        screen: Screen,
        place: Workbench,
        cluster: Cluster | None,
        stack: ExitStack,
    ) -> None:
        self.experiment, self.folder, self.screen, self.place = experiment, folder, screen, place
        self.outcome = Outcome(facts=facts.for_manifest(experiment, place))
        truth.recover(folder, self.warn)
        remove_halves(folder)
        self.cluster = cluster
        self.grid = stack.enter_context(closing(grid_of(experiment, self.cluster, self.warn)))
        beside = experiment.runtime.attacks == "during"
        tasks = stack.enter_context(attack_tasks(experiment, self.cluster, self.warn))
        self.attacks = Attacks(asked, folder, place.device, screen, self.warn, tasks, self.on_attack)
        stack.enter_context(closing(self.attacks))
        # While an attack runs, the truth is not in the run's folder.
        self.truth = stack.enter_context(truth.apart(folder, self.warn)) if beside else folder.truth
        witness = Witness(place, self.grid)
        expect = self.attacks.expect if beside else _nothing
        self.watch = Watch(experiment, place, witness, folder, self.truth, self.warn, expect)
        self.wiretap = Wiretap(experiment, facts.public(experiment, place), witness, self.watch)
        self.memory = Memory(experiment, folder, self.grid, self.watch, self.outcome.warnings, self.warn)
        self.grid.let_alter(Tampering(experiment, self.warn))
        self.grid.watch(self.wiretap)
        self.grid.watch(witness.note)
        self.sinks: Sinks | None = None
        self.ahead: Vectorized | None = None
        self._clipped = False

    def run(self, resume: bool) -> Outcome:
        """Rounds, then attacks."""
        server, before = self.memory.take_up() if resume else (None, [])
        self.outcome.rounds += before
        self.outcome.facts |= self.memory.facts
        self._clipped = any(record.secure and record.secure.get("clipped") for record in before)
        if before:
            self.screen.rounds(before[-1].round, self.experiment.rounds, before[-1])

        self._work_ahead()
        first = (before[-1].round + 1 if before else 0) if resume else None
        with opened(self.experiment, self.folder, self.warn, first) as self.sinks:
            self._work(server)
            self.sinks.end("done", self.outcome.facts)
        return self.outcome

    def _work(self, server: Mapping[str, Any] | None) -> None:
        def on_begin(rounds: Rounds) -> None:
            if server is not None:
                rounds.restore(server)

        app = server_app(self.experiment, self.on_round, self.on_model, self.wiretap.total, on_begin, self.memory.keep)
        app(self.grid, Context(self.grid.run.run_id, 0, {}, RecordDict(), {}))
        played = self.grid.describe()
        self.grid.close()  # attacks have the room of its workers
        self.watch.close()
        if self.watch.notes:
            self.outcome.facts["notes"] = self.watch.notes
        for entry in self.experiment.adversaries:
            _note_unseen(entry, self.experiment, self.watch.attacks, self.warn)
        self.outcome.attacks = self.attacks.run(self.watch.attacks, self.truth, read_lines(self.folder.attacks))
        if self.cluster is not None:
            self.outcome.facts["cluster"] = {"is": self.cluster.words(), **played, **self.attacks.describe()}
        self.folder.attacks.touch()  # no line says that nothing was attacked, and no file that the run broke off

    def _work_ahead(self) -> None:
        """Let clients train together, where the experiment asks for it; as before, where the run goes on."""
        if isinstance(self.grid, InlineGrid):
            earlier = self.memory.facts.get("vectorized")
            self.ahead = ahead_of(self.experiment, self.warn, decided=earlier and bool(earlier["used"]))
            self.grid.work_ahead(self.ahead)

    def warn(self, text: str) -> None:
        """Said to whoever looks on, and written into the manifest; once, also where a run goes on."""
        if text not in self.outcome.warnings:
            self.outcome.warnings.append(text)
            self.screen.warn(text)

    def on_round(self, record: RoundRecord) -> None:
        """A round is over."""
        self.wiretap.end_round()
        if self.ahead is not None and self.ahead.decision is not None and "vectorized" not in self.memory.facts:
            self.outcome.facts["vectorized"] = self.memory.facts["vectorized"] = self.ahead.decision.as_json()
        self.outcome.rounds.append(record)
        append_round(self.folder, record)
        reach("round.line")
        self.screen.rounds(record.round, self.experiment.rounds, record)
        self._tell(lambda sinks: sinks.round(record))
        self.attacks.look()
        if record.secure and record.secure.get("clipped") and not self._clipped:
            self._clipped = True
            self.warn(
                f"round {record.round}: secure aggregation cut off {counted(record.secure['clipped'], 'coordinate')} "
                "that were too large; raise server.secure_aggregation.clip, if this goes on"
            )

    def on_attack(self, line: Mapping[str, Any]) -> None:
        """An attack is over, and scored."""
        self._tell(lambda sinks: sinks.attack(line))

    def _tell(self, event: Callable[[Sinks], None]) -> None:
        if self.sinks is not None:
            event(self.sinks)

    def on_model(self, round_: int, parameters: Mapping[str, Tensor], running: Mapping[str, Tensor]) -> None:
        """Store the model, where the experiment wants it."""
        if round_ in self.experiment.save_rounds:
            self.folder.checkpoints.mkdir(exist_ok=True)
            known = {"round": round_, "seed": self.experiment.seed, **checkpoints.model_facts(self.experiment)}
            write_whole(self.folder.checkpoint(round_), checkpoints.pack(parameters, running, known))


def _nothing(attacks: object) -> None:
    """Attacks wait until all rounds are over."""


def _note_unseen(entry: AdversaryEntry, experiment: Experiment, attacks: list[Attack], warn: Any) -> None:
    """A target that was not drawn, or dropped out, shows nothing; say so rather than leave a gap."""
    if entry.vantage == "client" or entry.derive is not None:  # a derivation has notes of its own
        return
    why = "not drawn, dropped out, or the plugin made no job of it"
    for round_ in entry.rounds:
        done = {client for one in attacks if one.entry is entry and one.round == round_ for client in one.clients}
        unseen = [client for client in entry.targets if client not in done]
        if threat.is_summed(entry, experiment) and unseen:
            left, whom = numbered(sorted(done), "client"), numbered(unseen, "client")
            lost = f"there is no sum of {whom} in round {round_} to attack ({why})"
            if done:
                lost = f"the sum of round {round_} is of {left} without {whom} (not drawn, or dropped out)"
            warn(f"adversary '{entry.id}': {lost}")
            continue
        for client in unseen:
            warn(f"adversary '{entry.id}': there is no capture of client {client} in round {round_} to attack ({why})")
