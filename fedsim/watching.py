"""What becomes of the observations of a run: truth for the scoring, and jobs of the adversaries' plugins.

An adversary with a derivation gets its observations when all rounds are over; the others get each at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from torch import Tensor

from fedsim import scoring
from fedsim.adversaries.base import Derived, Observation
from fedsim.adversaries.storage import JobStore, Lazy
from fedsim.attack import Attack, clients_of
from fedsim.attacks import attacks_on
from fedsim.clients.workbench import Workbench
from fedsim.experiment import AdversaryEntry, Experiment
from fedsim.failpoints import reach
from fedsim.report.formats import numbered
from fedsim.runs import RunFolder, append_line
from fedsim.witness import Witness

Warn = Callable[[str], None]


class Watch:
    """Collects attacks from observations while a run goes on."""

    def __init__(
        self,
        experiment: Experiment,
        place: Workbench,
        witness: Witness,
        folder: RunFolder,
        truth: FilePath,
        warn: Warn,
        expect: Callable[[Sequence[Attack]], None] = lambda attacks: None,
    ) -> None:
        """truth: where it is written. expect: hears of attacks as soon as they are known."""
        self._experiment, self._place, self._witness = experiment, place, witness
        self._folder, self._truth, self._warn, self._expect = folder, truth, warn, expect
        self._store = JobStore(folder.captures, folder.jobs)
        self._images: dict[tuple[int, int], int] = {}
        """How many images a client had in a round, where the truth of it is written."""
        self._kept: dict[str, list[str]] = {}
        """By adversary, the addresses of what it was shown, for its derivation."""
        self.attacks: list[Attack] = []
        self.notes: list[dict[str, str]] = []
        """What derivations say of what they could and could not do, for the manifest."""

    def __call__(self, entry: AdversaryEntry, seen: Observation) -> None:
        """Take one observation, as the wiretap hands it over."""
        step = entry.derive.settings if entry.derive else entry.plugin.settings
        if not step.needs <= set(seen.facts["granted"]):
            return  # under secure aggregation a vantage shows sums and single clients, and not every plugin wants both
        for client in clients_of(seen):
            self._write_truth(client, seen.round)
        if not any(self._images[client, seen.round] for client in clients_of(seen)):
            # where each image is drawn by chance
            whom = numbered(list(clients_of(seen)), "client")
            self._warn(
                f"adversary '{entry.id}': {whom} drew no image in round {seen.round}: there is nothing to attack"
            )
        elif entry.derive is None:
            self._take(attacks_on(seen, entry, self._store, self._warn))
        else:
            self._kept.setdefault(entry.id, []).append(self._store.put_observation(seen))
            for client in set(clients_of(seen)) & set(entry.targets):
                # Now, while it is known what the client's defenses remembered in this round.
                update = self._witness.update(client, seen.round)
                scoring.write_update(self._truth, client, seen.round, update)

    def close(self) -> None:
        """Let derivations work, now that all rounds are over."""
        for entry in self._experiment.adversaries:
            if entry.derive is None:
                continue
            try:
                derived = entry.derive.settings.derive(Lazy(self._store.observation, self._kept.get(entry.id, ())))
                self._check(derived)
            except Exception as error:
                self._warn(
                    f"adversary '{entry.id}': derivation '{entry.derive.name}' failed: {type(error).__name__}: {error}"
                )
                continue
            self.notes += [{"adversary": entry.id, "about": entry.derive.name, "text": note} for note in derived.notes]
            for client in entry.targets:
                if client not in {seen.client for seen in derived.observations}:
                    self._note(entry, client)
            for seen in derived.observations:
                missing = sorted(entry.plugin.settings.needs - set(seen.facts["granted"]))
                if missing:
                    self._warn(
                        f"adversary '{entry.id}': what '{entry.derive.name}' derives of client {seen.client} in round "
                        f"{seen.round} lacks {', '.join(missing)}, which plugin '{entry.plugin.name}' needs"
                    )
                elif seen.client in entry.targets:
                    self._note(entry, seen.client, seen)
                    self._take(attacks_on(seen, entry, self._store, self._warn))

    def state(self) -> dict[str, Any]:
        """What it has to remember of the rounds that are over: plain data."""
        return {
            "images": [[client, round_, count] for (client, round_), count in self._images.items()],
            "kept": self._kept,
            "attacks": [[one.entry.id, one.job, list(one.clients), list(one.rounds)] for one in self.attacks],
            "notes": self.notes,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken; what was captured since then is removed.

        Raises FedsimError where something that was captured before is damaged.
        """
        self._store.keep(
            [job for _, job, _, _ in state["attacks"]], [one for kept in state["kept"].values() for one in kept]
        )
        entries = {entry.id: entry for entry in self._experiment.adversaries}
        self._images = {(client, round_): count for client, round_, count in state["images"]}
        for client, round_ in list(self._images):
            if not scoring.has_truth(self._truth, client, round_):  # lost apart from the run's folder
                del self._images[client, round_]
                self._write_truth(client, round_)
        self._kept, self.notes = dict(state["kept"]), list(state["notes"])
        self._take(
            Attack(entries[name], job, tuple(clients), tuple(rounds)) for name, job, clients, rounds in state["attacks"]
        )

    def _take(self, attacks: Iterable[Attack]) -> None:
        known = list(attacks)
        reach("capture.stored")
        self.attacks.extend(known)
        self._expect(known)

    def _write_truth(self, client: int, round_: int) -> None:
        if (client, round_) not in self._images:
            private = self._place.replay(client, round_, {}, {}, statistics=False)
            scoring.write_truth(self._truth, client, round_, private.batch, private.positions)
            reach("truth.written")
            self._images[client, round_] = len(private.batch)

    def _check(self, derived: Derived) -> None:
        for seen in derived.observations:
            if (seen.client, seen.round) not in self._images or "clients" in seen.facts:
                raise ValueError(
                    f"it returned an observation of client {seen.client} in round {seen.round}, of which it saw nothing"
                )

    def _note(self, entry: AdversaryEntry, client: int, seen: Observation | None = None) -> None:
        """A line about a client's derived update, with how far it is from the true one; or that there is none."""
        assert entry.derive is not None
        line = {"adversary": entry.id, "derivation": entry.derive.name, "client": client}
        if seen is None:
            rest = {"round": None, "error_bound": None, **scoring.NO_ERROR, "facts": None, "nothing": True}
        else:
            update = seen.part("update")
            rest = {
                "round": seen.round,
                "error_bound": self._bound(update.values()),
                **scoring.update_error(self._truth, client, seen.round, update),
                "facts": seen.facts.get("derived"),
            }
        append_line(self._folder.derived, {**line, **rest})

    def _bound(self, update: Iterable[Tensor]) -> float | None:
        """How far off one client's update, taken out of a sum, may be in a coordinate: by the rounding of its own
        integers, or by the errors of a whole sum of ciphertexts, and by that of float32.
        """
        mode = self._experiment.server.secure_aggregation
        if mode is None:
            return None
        largest = max((float(value.abs().max()) for value in update if value.numel()), default=0.0)
        return float(mode.settings.bound_of_one(self._place.terms)) + largest * 2.0**-24
