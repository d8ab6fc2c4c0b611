"""From a sweep to its grid: an experiment for each combination of the axes' points, and the trainings before them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedsim import __version__
from fedsim.errors import InputError, suggestion
from fedsim.experiment import Experiment
from fedsim.experiment_file import Rule, as_table, parse_setting
from fedsim.schema import FOLD
from fedsim.sweeps.drafts import Draft, Fault
from fedsim.sweeps.file import is_of_part, with_settings
from fedsim.sweeps.words import Axis, Point, Scale, Sweep
from fedsim.toml_lines import Path as Keys

_TRAINING, _VALUES = "training", "values"
"""First words of settings that are not the cells' own."""

_PLACES = (
    "threads",
    "grid",
    "ray",
    "workers",
    "cpus_per_client",
    "gpus_per_client",
    "cpus_per_attack",
    "gpus_per_attack",
    "attacks",
    "checkpoint_every",
)
"""Settings of `[runtime]` that say where and beside what a run is run, and not what comes of it."""


@dataclass(frozen=True)
class Training:
    """A model to be trained before cells attack it. hash: of the experiment's content."""

    hash: str
    experiment: Experiment
    attack_round: int

    @property
    def folder(self) -> str:
        """Below the sweep's folder."""
        return f"models/{self.hash[:16]}"


@dataclass(frozen=True)
class Cell:
    """One experiment of the grid. at: the point's name on each axis. hash: of the experiment's and training's content.

    experiment: without the checkpoint, which is there once `training` has run.
    baseline: the training that this one's time is compared with, where the table asks for it.
    """

    at: Mapping[str, str]
    experiment: Experiment
    hash: str
    training: Training | None = None
    baseline: Training | None = None

    @property
    def label(self) -> str:
        """The points' names."""
        return label_of(self.at)

    @property
    def folder(self) -> str:
        """Below the sweep's folder."""
        return f"cells/{self.label[:120]}-{self.hash[:8]}"

    def prepared(self, checkpoint: Path | None, threads: int | None) -> Experiment:
        """The experiment as it is run: from the checkpoint, with a number of threads if it names none itself."""
        started = replace(self.experiment, checkpoint=str(checkpoint)) if checkpoint else self.experiment
        return with_threads(started, threads)


@dataclass(frozen=True)
class Grid:
    """A sweep at one scale, with the command line's settings: all that is to be run. axes: with the points in use."""

    sweep: Sweep
    scale: str | None
    settings: tuple[str, ...]
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    trainings: tuple[Training, ...] = field(default=())

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """All that may be run."""
        return (*(cell.experiment for cell in self.cells), *(one.experiment for one in self.trainings))

    @property
    def confirm(self) -> bool:
        """Whether it runs only when the user has seen what it costs."""
        return self.scale is not None and self.sweep.scales[self.scale].confirm


def expand(sweep: Sweep, scale: str | None = None, settings: Sequence[str] = (), rules: Sequence[Rule] = ()) -> Grid:
    """The grid. scale: its name; the sweep's first if None. settings: `key=value`, of the cells; with `training.` in
    front of the training, with `values.` of [values], with `costs.` or `labels.` of these parts of the page.
    rules: what must hold of each cell's experiment besides.

    Raises InputError with a line for each mistake; one that many cells share is told once.
    """
    if scale is not None and scale not in sweep.scales:
        hint = suggestion(scale, sweep.scales) or "; the sweep has none, leave --scale away"
        raise InputError(f"--scale {scale}: there is no such scale{hint}")
    chosen = scale or sweep.default_scale
    sweep = with_settings(sweep, (*sweep.settings, *settings))
    maker = _Maker(sweep, chosen, (*sweep.settings, *settings), rules)
    if sweep.experiment is None:
        return Grid(sweep, chosen, maker.settings, (), ())
    cells = [maker.cell(points) for points in itertools.product(*(axis.points for axis in maker.axes))]
    maker.raise_faults()
    ready = _with_baselines([cell for cell in cells if cell], sweep)
    needed = {cell.training.hash: cell.training for cell in ready if cell.training}
    return Grid(sweep, chosen, maker.settings, maker.axes, ready, tuple(needed.values()))


def narrow(grid: Grid, only: Sequence[str]) -> Grid:
    """The part of a grid that `axis=point,point` says, with the trainings that it needs; several are for several axes.

    Raises InputError for an axis or a point that the grid does not have, and where no cell is left.
    """
    wanted: dict[str, list[str]] = {}
    by_name = {axis.name: axis for axis in grid.axes}
    for text in only:
        name, equals, points = text.partition("=")
        if not equals or not points:
            raise InputError(f"--only {text}: not of the form axis=point,point; for example --only batch=1")
        if name not in by_name:
            raise InputError(f"--only {text}: there is no axis '{name}'{suggestion(name, by_name)}")
        for point in points.split(","):
            if point not in by_name[name].names:
                hint = suggestion(point, by_name[name].names)
                raise InputError(f"--only {text}: axis '{name}' has no point '{point}' at this scale{hint}")
            wanted.setdefault(name, []).append(point)
    cells = tuple(cell for cell in grid.cells if all(cell.at[axis] in points for axis, points in wanted.items()))
    needed = {cell.training.hash: cell.training for cell in cells if cell.training}
    return replace(grid, cells=cells, trainings=tuple(needed.values()))


def label_of(at: Mapping[str, str]) -> str:
    """For folders and lines: the points' names, in the order of the axes."""
    return "-".join(at.values()) or "cell"


def with_threads(experiment: Experiment, threads: int | None) -> Experiment:
    """The experiment with a number of threads, unless it names one or none is given."""
    if threads is None or experiment.runtime.threads is not None:
        return experiment
    return replace(experiment, runtime=replace(experiment.runtime, threads=threads))


def fingerprint(experiment: Experiment, training: str | None = None) -> str:
    """SHA-256 of what determines the outcome: the version of fedsim, but neither the name, nor threads, nor on which
    machines it is run, nor where the checkpoint lies; instead its content, or the hash of the training that it comes
    from. What is in files of images is not looked at.
    """
    table = as_table(replace(experiment, checkpoint=None if training else experiment.checkpoint))
    del table["name"]
    for key in _PLACES:
        table["runtime"].pop(key, None)
    table.pop("logging", None)
    if table.get("checkpoint") and Path(table["checkpoint"]).is_file():  # it may be another one the next time
        table["checkpoint"] = hashlib.sha256(Path(table["checkpoint"]).read_bytes()).hexdigest()
    text = json.dumps({"experiment": table, _TRAINING: training, "fedsim": __version__}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class _Maker:
    """Makes the cells of one grid, and collects what is wrong with them."""

    def __init__(self, sweep: Sweep, scale: str | None, settings: tuple[str, ...], rules: Sequence[Rule]) -> None:
        self.sweep, self.rules, self.settings = sweep, rules, settings
        self.scale = sweep.scales[scale] if scale is not None else Scale()
        self._scale_at: Keys = ("scales", scale or "")
        self._commands = [(*parse_setting(text), text) for text in settings if not is_of_part(text)]
        self._values = {**sweep.values, **self.scale.values}
        self._check_commands()
        self.axes = tuple(
            replace(axis, points=tuple(point for point in axis.points if point.name in self.scale.axes[axis.name]))
            if axis.name in self.scale.axes
            else axis
            for axis in sweep.axes
        )
        self._at: dict[int, Keys] = {
            id(point): ("axes", place, "points", number)
            for place, axis in enumerate(sweep.axes)
            for number, point in enumerate(axis.points)
        }
        self._trainings: dict[str, Training] = {}
        self._faults: dict[Fault, list[str]] = {}

    def cell(self, points: Sequence[Point]) -> Cell | None:
        """One cell, or None after noting what is wrong with it."""
        at = {axis.name: point.name for axis, point in zip(self.axes, points, strict=True)}
        training = self._training(at, points) if self.sweep.training else None
        draft = self._draft()
        for point in points:
            draft.change(point.both, (*self._at[id(point)], "both"))
        for point in points:
            if point.adversaries is not None:
                self._arm(draft, point.adversaries, (*self._at[id(point)], "adversaries"))
        for point in points:
            draft.change(point.set, (*self._at[id(point)], "set"))
        for point in points:
            draft.multiply(point.times, (*self._at[id(point)], "times"))
        for path, value, text in self._commands:
            if path[0] not in (_TRAINING, _VALUES):
                draft.command(path, value, text)
        experiment = draft.finish(label_of(at)[:80], self.rules)
        self._note(draft.faults, f"cell {label_of(at)}")
        if experiment is None or (self.sweep.training and training is None):
            return None
        return Cell(at, experiment, fingerprint(experiment, training.hash if training else None), training)

    def raise_faults(self) -> None:
        """InputError if anything was noted."""
        kinds: dict[tuple[str, str], int] = {}
        lines = []
        for fault, whose in self._faults.items():
            kind = (fault.place, fault.key)
            kinds[kind] = kinds.get(kind, 0) + 1
            if kinds[kind] <= FOLD:
                others = f" and {len(whose) - 1} other{'s' * (len(whose) > 2)}" if len(whose) > 1 else ""
                lines.append(fault.line(whose[0] + others))
        if lines:
            raise InputError(*lines)

    def _training(self, at: Mapping[str, str], points: Sequence[Point]) -> Training | None:
        spec = self.sweep.training
        assert spec is not None
        draft = self._draft()
        draft.table.pop("adversaries", None)
        draft.change(spec.set, (_TRAINING, "set"))
        draft.change(self.scale.training, (*self._scale_at, _TRAINING))
        for point in points:
            draft.change(point.both, (*self._at[id(point)], "both"))
        for point in points:
            draft.change(point.training, (*self._at[id(point)], _TRAINING))
        scaled = self.scale.attack_round
        attack_round = spec.attack_round if scaled is None else scaled
        written: Keys = (_TRAINING, "attack_round") if scaled is None else (*self._scale_at, "attack_round")
        draft.replace("save_rounds", [attack_round], [(("save_rounds",), written)])
        for path, value, text in self._commands:
            if path[0] == _TRAINING:
                draft.command(path[1:], value, text)
        experiment = draft.finish("training", ())
        self._note(draft.faults, f"training of cell {label_of(at)}")
        if experiment is None:
            return None
        key = fingerprint(experiment)
        return self._trainings.setdefault(key, Training(key, experiment, attack_round))

    def _draft(self) -> Draft:
        sweep = self.sweep
        draft = Draft(dict(sweep.experiment or {}), sweep.source, sweep.lines, self._values, sweep.files)
        draft.change(self.scale.set, (*self._scale_at, "set"))
        return draft

    def _arm(self, draft: Draft, names: Sequence[str], at: Keys) -> None:
        """Put the named templates into the cell, with what the scale sets in all of them."""
        entries: list[dict[str, Any]] = []
        origins: list[tuple[Keys, Keys]] = []
        for place, name in enumerate(names):
            entry = {"id": name, **self.sweep.templates[name], **self.scale.templates}
            entry.pop("label", None)
            entries.append(entry)
            origins.append((("adversaries", place), ("templates", name)))
            for key in self.scale.templates:
                origins.append((("adversaries", place, key), (*self._scale_at, "templates", key)))
        draft.replace("adversaries", entries, [(("adversaries",), at), *origins])

    def _check_commands(self) -> None:
        for path, value, text in self._commands:
            if self.sweep.experiment is None:
                raise InputError(f"--set {text}: this sweep has no experiments to change")
            if path[0] == _TRAINING and (self.sweep.training is None or len(path) == 1):
                why = "this sweep trains no model" if self.sweep.training is None else "name a key of it"
                raise InputError(f"--set {text}: {why}; as in --set training.rounds=5")
            if path[0] == _VALUES:
                name = ".".join(map(str, path[1:]))
                if name not in self._values:
                    raise InputError(f"--set {text}: [values] has no '{name}'{suggestion(name, self._values)}")
                self._values[name] = value

    def _note(self, faults: Sequence[Fault], whose: str) -> None:
        for fault in faults:
            self._faults.setdefault(fault, []).append(whose)


def _with_baselines(cells: Sequence[Cell], sweep: Sweep) -> tuple[Cell, ...]:
    """Each cell with the training of its row's baseline column, where times are to be compared."""
    table = sweep.table
    if table is None or table.baseline is None or "time_ratio" not in table.training:
        return tuple(cells)
    trained = {tuple(cell.at.items()): cell.training for cell in cells}
    column = {table.columns: table.baseline}
    return tuple(replace(cell, baseline=trained.get(tuple({**cell.at, **column}.items()))) for cell in cells)


def settings_of(grid: Grid) -> dict[str, Any]:
    """The sweep's file as it was run: its content, with name, scale and settings written into [sweep]."""
    head = {**grid.sweep.content["sweep"], "name": grid.sweep.name, "settings": list(grid.settings)}
    if grid.scale is not None:
        head["scale"] = grid.scale
    return {**grid.sweep.content, "sweep": head}
