"""Weights & Biases: offline, unless the experiment asks to send it off."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedsim.runs import RoundRecord, append_line, read_lines
from fedsim.settings import Name
from fedsim.sinks.base import Held, SinkRun, facts_alone, flat, known_id, note_id, of_attack, of_round, place, require


@dataclass(frozen=True)
class WandB:
    """Weights & Biases: a transaction log in RUN/wandb, which `wandb sync` sends off later, or at once if online.

    project, entity: whose it is there. mode: offline touches no network; online needs `wandb login`.
    pictures: whether reconstructions are logged.
    """

    project: Name = "fedsim"
    entity: str | None = None
    mode: Literal["offline", "online"] = "offline"
    pictures: bool = True

    def check(self) -> None:
        """Raises InputError where wandb is not installed."""
        require("wandb", extra="wandb")

    def open(self, run: SinkRun) -> _Log:
        """A run, gone on with under the same id where fedsim's goes on."""
        return _Log(run, self)


class _Log:
    """A run that goes on is told to the log from its first round on. Offline, wandb's helper keeps what it is told in
    memory for long, and a kill takes it along: so the log is made anew, of the same id. Online it is on the server, and
    what was told is noted in RUN/wandb/told.jsonl.
    """

    def __init__(self, run: SinkRun, settings: WandB) -> None:
        if settings.mode == "offline":
            os.environ["WANDB_ERROR_REPORTING"] = "false"  # its helper would report to its makers also when offline
        import wandb

        folder = run.path.absolute() / "wandb"
        folder.mkdir(exist_ok=True)
        note = folder / "run.json"
        id_ = known_id(note, settings.mode)
        self._path, self._pictures = run.path, settings.pictures
        self._told, self._online = folder / "told.jsonl", settings.mode == "online"
        if not self._online and id_ is not None:
            id_ = id_ if _cleared(folder / "wandb") else None
        lines = read_lines(self._told) if self._online and id_ is not None else []
        self._held = Held((str(line.get("what")), int(line.get("step", 0))) for line in lines)
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            dir=str(folder),
            name=run.name,
            id=id_ or note_id(note, settings.mode, secrets.token_hex(8)),
            resume="allow" if self._online and id_ is not None else None,
            config=flat(run.experiment),
            reinit="create_new",  # a program may have a run of its own
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
            ),
        )
        # Attacks may come between rounds and after them, so neither is wandb's own step, which only grows.
        self._run.define_metric("*", step_metric="round")

    def round(self, record: RoundRecord) -> None:
        self._log("round", record.round, of_round(record))

    def attack(self, line: Mapping[str, Any]) -> None:
        import wandb

        step, what = int(line.get("round") or 0), place(line)
        data: dict[str, Any] = dict(of_attack(line))
        if line.get("picture") and self._pictures:
            data[f"{what}/picture"] = wandb.Image(str(self._path / line["picture"]))
        self._log(what, step, data)

    def end(self, status: str, facts: Mapping[str, Any]) -> None:
        self._run.summary.update({"status": status, **facts_alone(facts)})
        self._run.finish(exit_code=0 if status == "done" else 1)

    def _log(self, what: str, step: int, data: Mapping[str, Any]) -> None:
        if self._held.takes(what, step):
            self._run.log({"round": step, **data})
            if self._online:
                append_line(self._told, {"what": what, "step": step})


def _cleared(folder: Path) -> bool:
    """Remove the logs of a run that goes on. Those that `wandb sync` has sent off stay; False if there are such, and
    the id is taken, then.
    """
    logs = list(folder.glob("offline-run-*"))
    sent = [log for log in logs if any(log.glob("*.synced"))]
    for log in logs:
        if log not in sent:
            shutil.rmtree(log)
    return not sent
