"""The words of a sweep file: what it may say, section by section, as frozen data. `file` reads a file into these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from fedsim.settings import Count, Device, Index, Name, NonNegative, Positive
from fedsim.toml_lines import Path

Part = Literal["table", "pictures", "plane", "lines", "labels", "costs", "assumptions"]
"""A part of the page that a sweep ends with."""

Value = Literal["lpips", "psnr", "ssim", "lpips_paper", "label_accuracy"]
"""What is measured of an attack."""

OfTraining = Literal["test_accuracy", "time_ratio", "cpu_seconds"]
"""What is measured of a training."""

VALUES: tuple[str, ...] = get_args(Value)
OF_TRAINING: tuple[str, ...] = get_args(OfTraining)
PER_IMAGE = ("lpips", "psnr", "ssim", "lpips_paper")
"""Those values that each image has."""


@dataclass(frozen=True)
class Point:
    """`[[axes.points]]`: one place on an axis, and what it changes. Keys are dotted, as for `--set`.

    set: of the cells' experiment alone. training: of the training alone. both: of both. times: numbers of the cells'
    experiment that are multiplied, after every point's `set`.
    adversaries: the templates that make up the cell's adversaries; None leaves them as they are.
    """

    name: Name
    label: str | None = None
    adversaries: tuple[str, ...] | None = None
    set: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    both: dict[str, Any] = field(default_factory=dict)
    times: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Axis:
    """`[[axes]]`: a quantity that is varied. The cells are all combinations of all axes' points."""

    name: Name
    label: str | None = None
    points: tuple[Point, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of its points, in their order."""
        return tuple(point.name for point in self.points)


@dataclass(frozen=True)
class TrainingSpec:
    """`[training]`: how the model comes about that the cells attack.

    set: what differs from [experiment]. attack_round: the cells start from the model after this round; 0: the first.
    """

    attack_round: Index
    set: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """`[scales.NAME]`: the same sweep, smaller or larger.

    set: over [experiment]. training: over [training]. axes: for some axes, the points that are used. values: over
    [values].
    templates: settings put into every template. attack_round: instead of the [training]'s. words: what readers of the
    outcome must know of it. confirm: whether it runs
    only with --yes.
    """

    set: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    templates: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    attack_round: Index | None = None
    words: str = ""
    confirm: bool = False


@dataclass(frozen=True)
class Attacker:
    """`[[table.attackers]]`: adversaries that stand for one and the same attacker, whose means differ from defense to
    defense. adversaries: their ids; of each cell, the first that it has counts.
    """

    name: Name
    adversaries: tuple[str, ...]
    label: str | None = None


@dataclass(frozen=True)
class Protocol:
    """`[[table.protocols]]`: one reading of the attacks: whose lines count (everybody's if none is named), by which
    score, and what there is to say about it.
    """

    name: Name
    adversaries: tuple[str, ...] = ()
    label: str | None = None
    score: Value = "lpips"
    words: str = ""


@dataclass(frozen=True)
class TableSpec:
    """`[table]`: which axis goes down, which across, and what is shown. baseline: the column of `time_ratio` 1.

    attackers: where there are any, they take the place of adversaries, in protocols too.
    """

    columns: str
    rows: str | None = None
    values: tuple[Value, ...] = ("lpips",)
    training: tuple[OfTraining, ...] = ()
    baseline: str | None = None
    attackers: tuple[Attacker, ...] = ()
    protocols: tuple[Protocol, ...] = ()


@dataclass(frozen=True)
class Chart:
    """`[chart]`: a value, of attacks or of the training, over an axis whose points' names are numbers; a line for each
    point of another axis.
    """

    x: str
    y: Value | OfTraining
    lines: str | None = None


@dataclass(frozen=True)
class Costs:
    """`[costs]`: what the cost model of an end-to-end recovery is fed with.

    images, epochs, batch: of the client's training: so many private images, passes over them, and images a gradient.
    hours: that one inversion of a batch takes. decoding_hours: of all encodings of the client together.
    measure: take for `hours` what an inversion of `iterations` steps on this machine would take, by the time of a step
    of `model` on a batch of images of `data`.
    """

    images: Count = 10_000
    epochs: Count = 50
    batch: Count = 128
    hours: Positive = 0.25
    decoding_hours: NonNegative = 0.0
    measure: bool = False
    iterations: Count = 10_000
    data: str | dict[str, Any] = "cifar10"
    model: str | dict[str, Any] = "preact_resnet18"
    device: Device = "auto"


@dataclass(frozen=True)
class Labels:
    """`[labels]`: so many random batches of each size, of the training images of the cells' data sets."""

    batches: tuple[Count, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    draws: Count = 1000


@dataclass(frozen=True)
class Sweep:
    """A whole sweep file. experiment, templates and published are plain data, checked where they are used.

    values: what stands for the text "$NAME" wherever a value of an experiment is given; a scale may change it.

    scale, settings: chosen already, in a file that a sweep has written into its folder.
    costs, labels: for the parts of the page of these names; None where it has no such part.
    source, lines: the file, and on which line each key stands, for messages. files: for keys that come from a file that
    this one extends, which.
    """

    name: str
    title: str
    show: tuple[Part, ...] = ("table",)
    scales: Mapping[str, Scale] = field(default_factory=dict)
    experiment: Mapping[str, Any] | None = None
    training: TrainingSpec | None = None
    templates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    axes: tuple[Axis, ...] = ()
    table: TableSpec | None = None
    chart: Chart | None = None
    costs: Costs | None = None
    labels: Labels | None = None
    published: Mapping[str, Any] = field(default_factory=dict)
    scale: str | None = None
    settings: tuple[str, ...] = ()
    source: str = field(default="sweep", compare=False)
    lines: Mapping[Path, int] = field(default_factory=dict, compare=False, repr=False)
    content: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The file, parsed, with what it extends."""
    files: Mapping[Path, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def default_scale(self) -> str | None:
        """The one that is run if none is asked for; None in a file without scales."""
        return self.scale or next(iter(self.scales), None)
