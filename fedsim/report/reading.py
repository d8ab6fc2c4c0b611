"""Reading a run folder with patience.

A run that was killed leaves files that are missing or cut short, and a later version may write keys that this one does
not know. So every value is checked on its way in: what is not what it should be becomes None, or an empty tuple, and
`Run.gaps` says in words what could not be read. Only a folder that holds nothing of a run is refused.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.errors import InputError
from fedsim.report.derived import Derived, Note, derived_of, note_of
from fedsim.report.rounds import Round, round_of
from fedsim.report.values import Table, integer, integers, real, strings, table, tables, text
from fedsim.runs import read_lines, timed

EXPERIMENT, MANIFEST, ROUNDS, ATTACKS = "experiment.toml", "manifest.json", "rounds.jsonl", "attacks.jsonl"
TIMINGS = "timings.jsonl"
DERIVED = "derived.jsonl"
"""Only there if an adversary derived single updates, so nothing is said where it is missing."""
CONSEQUENCES = {
    EXPERIMENT: "the setup is shown only as far as the other files tell it",
    MANIFEST: "versions, hashes, clients and the account of who sees what are not shown",
    ROUNDS: "training is not shown",
    ATTACKS: "no attack is shown",
    DERIVED: "derived updates are not shown",
}
SCORES = ("psnr", "ssim", "lpips")
EARLY = {
    "plateau": "ended early: its objective fell no further",
    "time": "ended at its time limit",
}
PARTLY = {
    "mixtures": "some of the images may be mixtures of several private ones",
    "incomplete": "not every image could be recovered",
    "partial": "some of its inversions failed and were left out",
    "underdetermined": "the gradient leaves the image open; the smallest one that fits was taken",
}
"""How attacks end besides being done, without having failed: before their time, or with less than the whole batch."""


@dataclass(frozen=True)
class Attack:
    """One line of `attacks.jsonl`: one reconstruction and its scores (means over the batch, images in [0, 1]).

    clients: whose data; several where only the sum of their updates was seen, and then there is no `client`.
    images: how many were scored; 0 if it was after the labels alone. rounds: all that it is of; `round` is the last.
    entry: the adversary of the experiment whose answer this is: of several answers, each has a name of its own.
    """

    adversary: str = "unnamed"
    plugin: str = ""
    vantage: str = ""
    client: int | None = None
    clients: tuple[int, ...] = ()
    round: int | None = None
    rounds: tuple[int, ...] = ()
    entry: str = ""
    batch: int | None = None
    images: int | None = None
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    lpips_net: str = ""
    lpips_note: str = ""
    label_accuracy: float | None = None
    iterations: int | None = None
    seconds: float | None = None
    objective: float | None = None
    status: str = ""
    error: str = ""
    aware: bool = False
    job: str = ""
    picture: str = ""
    defenses: tuple[Table, ...] | None = None
    history: tuple[tuple[float, float], ...] = ()
    notes: Table = field(default_factory=dict)
    per_image: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)

    @property
    def when(self) -> str:
        """`3`, or `1-12` of an answer made from several rounds; "" where that is unknown."""
        if len(self.rounds) > 1:
            return f"{min(self.rounds)}-{max(self.rounds)}"
        return "" if self.round is None else str(self.round)

    @property
    def scored(self) -> bool:
        """Whether there is anything to compare: a finite or infinite SSIM or PSNR, not NaN."""
        return any(value is not None and value == value for value in (self.ssim, self.psnr))

    @property
    def labels_alone(self) -> bool:
        """Whether it was after the labels and no images, and got some."""
        known = self.label_accuracy is not None and math.isfinite(self.label_accuracy)
        return self.images == 0 and not self.scored and known

    @property
    def informed(self) -> bool:
        """Whether the adversary knew of a defense that there was."""
        return self.aware and self.defenses != ()

    @property
    def failed(self) -> bool:
        """Whether the attack went wrong. An early end, or less than everything, is no failure."""
        return bool(self.error) or self.status not in ("", "done", *EARLY, *PARTLY)


@dataclass(frozen=True)
class Client:
    """A client as the manifest describes it. `labels` counts its examples of each class."""

    client: int
    examples: int | None = None
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sight:
    """The simulator's own account of one adversary: what it was shown and what not.

    colluders: the clients that work together with it. derive: how it makes single updates out of what it sees.
    threat_model: the canned one that it follows.
    """

    adversary: str
    words: str = ""
    sees: tuple[str, ...] = ()
    knows: tuple[str, ...] = ()
    does_not_see: tuple[str, ...] = ()
    powers: tuple[str, ...] = ()
    colluders: tuple[int, ...] = ()
    derive: str = ""
    threat_model: str = ""


@dataclass(frozen=True)
class Run:
    """Everything that a report needs, as far as the folder has it."""

    folder: Path
    experiment: Table
    experiment_text: str
    manifest: Table
    rounds: tuple[Round, ...]
    attacks: tuple[Attack, ...]
    clients: tuple[Client, ...]
    sights: tuple[Sight, ...]
    warnings: tuple[str, ...]
    gaps: tuple[str, ...]
    derived: tuple[Derived, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def name(self) -> str:
        """The experiment's name, or the folder's."""
        return text(self.experiment.get("name")) or self.folder.resolve().name

    def section(self, name: str) -> Table:
        """A table of the experiment file; empty if it is not there."""
        return table(self.experiment.get(name))


def read(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        InputError: the folder does not exist, is no folder, or holds none of the files of a run.
    """
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: run: {problem}; give the folder that `fedsim run` wrote its results to")
    if not any((folder / name).is_file() for name in (EXPERIMENT, MANIFEST, ROUNDS, ATTACKS)):
        raise InputError(
            f"{folder}: run: not a run folder, it has none of {EXPERIMENT}, {MANIFEST}, {ROUNDS} and {ATTACKS}; "
            "give the folder that `fedsim run` wrote its results to"
        )
    gaps: list[str] = []
    experiment_text = _content(folder / EXPERIMENT, gaps)
    experiment: Table = {}
    try:
        experiment = tomllib.loads(experiment_text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        gaps.append(f"{EXPERIMENT} is damaged ({error}): {CONSEQUENCES[EXPERIMENT]}.")
    manifest_text = _content(folder / MANIFEST, gaps)
    manifest = table(_parsed(manifest_text)) if manifest_text.strip() else {}
    if manifest_text.strip() and not manifest:
        gaps.append(f"{MANIFEST} is damaged: {CONSEQUENCES[MANIFEST]}.")
    rounds = {}
    timings = [line for line in read_lines(folder / TIMINGS) if isinstance(line, Mapping)]
    for line in timed(_lines(folder / ROUNDS, gaps), timings):
        record = round_of(line)
        if record is not None:
            rounds[record.round] = record  # A resumed run may repeat a round: the last line holds.
    attacks: dict[object, Attack] = {}
    none = _without_attacks(folder, experiment, manifest)
    for number, line in enumerate(timed(_lines(folder / ATTACKS, gaps), timings) if not none else ()):
        attack = attack_of(line)
        key = (attack.job, attack.adversary, attack.client, attack.round) if attack.job else number
        attacks[key] = attack  # Likewise a job that was tried again.
    there = not _bare(folder / DERIVED)
    derived = [derived_of(line) for line in (_lines(folder / DERIVED, gaps) if there else ())]
    clients = [client_of(entry) for entry in tables(manifest.get("clients"))]
    return Run(
        folder=folder,
        experiment=experiment,
        experiment_text=experiment_text,
        manifest=manifest,
        rounds=tuple(rounds[key] for key in sorted(rounds)),
        attacks=tuple(attacks.values()),
        clients=tuple(sorted((client for client in clients if client), key=lambda client: client.client)),
        sights=tuple(sight_of(entry) for entry in tables(manifest.get("who_sees_what"))),
        warnings=strings(manifest.get("warnings")),
        gaps=tuple(gaps),
        derived=tuple(derived),
        notes=tuple(note for note in map(note_of, tables(manifest.get("notes"))) if note),
    )


def attack_of(line: Table) -> Attack:
    """A line of `attacks.jsonl`."""
    per_image = table(line.get("per_image"))
    defenses = line.get("defenses")
    pairs = line.get("history")
    steps = [
        (real(pair[0]), real(pair[1]))
        for pair in (pairs if isinstance(pairs, list | tuple) else ())
        if isinstance(pair, list | tuple) and len(pair) >= 2
    ]
    return Attack(
        adversary=text(line.get("adversary")) or "unnamed",
        plugin=text(line.get("plugin")),
        vantage=text(line.get("vantage")),
        client=integer(line.get("client")),
        clients=integers(line.get("clients")),
        round=integer(line.get("round")),
        rounds=integers(line.get("rounds")) or integers([line.get("round")]),
        entry=text(line.get("entry")) or text(line.get("adversary")) or "unnamed",
        batch=integer(line.get("batch")),
        images=integer(line.get("images")),
        psnr=real(line.get("psnr")),
        ssim=real(line.get("ssim")),
        lpips=real(line.get("lpips")),
        lpips_net=text(line.get("lpips_net")),
        lpips_note=text(line.get("lpips_note")),
        label_accuracy=real(line.get("label_accuracy")),
        iterations=integer(line.get("iterations")),
        seconds=real(line.get("seconds")),
        objective=real(line.get("objective")),
        status=text(line.get("status")),
        error=text(line.get("error")),
        aware=line.get("aware") is True,
        job=text(line.get("job")),
        picture=text(line.get("picture")),
        defenses=tables(defenses) if isinstance(defenses, list | tuple) else None,
        history=tuple((x, y) for x, y in steps if x is not None and y is not None),
        notes=table(line.get("notes")),
        per_image={
            name: tuple(real(value) for value in per_image[name])
            for name in SCORES
            if isinstance(per_image.get(name), list | tuple)
        },
    )


def client_of(entry: Table) -> Client | None:
    """An entry of the manifest's `clients`."""
    number = integer(entry.get("client"))
    if number is None:
        return None
    labels = tuple(max(count, 0) for count in integers(entry.get("labels")))
    return Client(number, integer(entry.get("examples")), labels)


def sight_of(entry: Table) -> Sight:
    """An entry of the manifest's `who_sees_what`."""
    return Sight(
        adversary=text(entry.get("adversary")),
        words=text(entry.get("words")),
        sees=strings(entry.get("sees")),
        knows=strings(entry.get("knows")),
        does_not_see=strings(entry.get("does_not_see")),
        powers=strings(entry.get("powers")),
        colluders=integers(entry.get("colluders")),
        derive=text(entry.get("derive")),
        threat_model=text(entry.get("threat_model")),
    )


def _without_attacks(folder: Path, experiment: Table, manifest: Table) -> bool:
    """Whether it is no gap that a run recorded no attack: there was none to record, as far as its files tell."""
    if not _bare(folder / ATTACKS):
        return False
    if (folder / ATTACKS).is_file():  # a finished run has the file, with or without attacks
        return True
    known = bool(tables(experiment.get("adversaries")) or tables(manifest.get("who_sees_what")))
    if not known:
        return bool(experiment or manifest)
    finished = text(manifest.get("status")) == "done" and integer(manifest.get("exit")) == 0
    return finished and not any((folder / "jobs").glob("*.json"))


def _bare(path: Path) -> bool:
    """Whether a file is missing or holds nothing."""
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _content(path: Path, gaps: list[str]) -> str:
    """The text of a file; empty if it cannot be had, with a line in `gaps`."""
    problem = "is missing"
    try:
        content = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        content = ""
    except OSError as error:
        content, problem = "", f"cannot be read ({error.strerror})"
    else:
        problem = "" if content.strip() else "is empty"
    if problem:
        gaps.append(f"{path.name} {problem}: {CONSEQUENCES[path.name]}.")
    return content


def _parsed(content: str) -> Any:
    """JSON, or None where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _lines(path: Path, gaps: list[str]) -> Iterable[Table]:
    """The lines of a file that are JSON objects. The others are counted in `gaps`."""
    lines = [line for line in _content(path, gaps).split("\n") if line.strip()]
    parsed = [_parsed(line) for line in lines]
    damaged = [index for index, value in enumerate(parsed) if not isinstance(value, Mapping)]
    if damaged == [len(lines) - 1]:
        gaps.append(f"{path.name} ends in the middle of a line, as after a kill: that line is left out.")
    elif damaged:
        gaps.append(f"{path.name}: {len(damaged)} of {len(lines)} lines are damaged and left out.")
    return [value for value in parsed if isinstance(value, Mapping)]
