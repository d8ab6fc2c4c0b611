"""TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.sinks.base import Held, SinkRun, facts_alone, flat, of_attack, of_round, place, require

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from fedsim.runs import RoundRecord


@dataclass(frozen=True)
class TensorBoard:
    """TensorBoard's event files: scalars by round, reconstructions as images, the experiment as text.

    folder: where, with a folder for each run in it, so that several are compared; RUN/tensorboard if absent.
    pictures: whether reconstructions are logged.
    """

    folder: str | None = None
    pictures: bool = True

    def check(self) -> None:
        """Raises InputError where tensorboard is not installed."""
        require("tensorboard", extra="tensorboard")

    def open(self, run: SinkRun) -> _Log:
        """Event files in the run's own folder, or a folder of its name. Raises FileExistsError where those of another
        run are there.
        """
        if self.folder is None:
            return _Log(run, run.path / "tensorboard", self.pictures)
        folder = Path(self.folder).expanduser() / run.name
        if run.resumed is None and folder.is_dir() and any(folder.glob("events.out.tfevents.*")):
            raise FileExistsError(f"{folder} holds the log of another run; remove it, or name another folder")
        return _Log(run, folder, self.pictures)


class _Log:
    def __init__(self, run: SinkRun, folder: Path, pictures: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path, self._pictures = run.path, pictures
        self._held = Held(_entries(folder) if folder.is_dir() else ())
        # Flushed after each event, by us: a log of a run that is killed lacks nothing.
        self._writer: SummaryWriter = SummaryWriter(str(folder), flush_secs=3600)
        if self._held.takes("experiment/text_summary", 0):
            rows = [f"| {key} | `{value}` |" for key, value in sorted(flat(run.experiment).items())]
            self._writer.add_text("experiment", "\n".join(["| setting | value |", "|---|---|", *rows]), 0)
            self._writer.flush()

    def round(self, record: RoundRecord) -> None:
        self._scalars(of_round(record), record.round)
        self._writer.flush()

    def attack(self, line: Mapping[str, Any]) -> None:
        step = int(line.get("round") or 0)
        self._scalars(of_attack(line), step)
        tag, picture = f"{place(line)}/picture", line.get("picture")
        if picture and self._pictures and self._held.takes(tag, step):
            import numpy
            from PIL import Image

            with Image.open(self._path / picture) as image:
                self._writer.add_image(tag, numpy.asarray(image.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def end(self, status: str, facts: Mapping[str, Any]) -> None:
        words = [f"status: {status}", *(f"{key}: {value}" for key, value in facts_alone(facts).items())]
        self._writer.add_text("end", "  \n".join(words), 0)
        self._writer.close()

    def _scalars(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            if self._held.takes(name, step):
                self._writer.add_scalar(name, value, step)


def _entries(folder: Path) -> list[tuple[str, int]]:
    """What is in a log: names and steps. One that a kill cut off in the middle ends there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # 0: all of them, not a sample.
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    found = []
    for kind, read in (("scalars", events.Scalars), ("images", events.Images), ("tensors", events.Tensors)):
        found += [(tag, event.step) for tag in events.Tags()[kind] for event in read(tag)]
    return found
