"""An MLflow tracking store."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.sinks.base import Held, SinkRun, facts_alone, flat, known_id, note_id, of_attack, of_round, require

if TYPE_CHECKING:
    from fedsim.runs import RoundRecord

STATUSES = {"done": "FINISHED", "interrupted": "KILLED"}
"""MLflow's words for how a run ended; any other is FAILED."""

LONGEST_TAG = 5000
"""Characters that MLflow takes as a tag's value."""

OWN = "own"
"""The database in the run's own folder, wherever that is moved to."""

BATCH = 100
"""Parameters in one request, which is as many as MLflow takes."""


@dataclass(frozen=True)
class MLflow:
    """An MLflow tracking store: metrics by round, settings as parameters, reconstructions as artifacts.

    tracking_uri: a database (sqlite:///PATH) or a server (http://HOST:PORT); RUN/mlflow/mlflow.db if absent.
    experiment: MLflow's name for what belongs together; the experiment's own if absent.
    pictures: whether reconstructions are logged.
    """

    tracking_uri: str | None = None
    experiment: str | None = None
    pictures: bool = True

    def check(self) -> None:
        """Raises InputError where mlflow-skinny, or what it needs to write to a database, is not installed."""
        require("mlflow-skinny", "sqlalchemy", "alembic", extra="mlflow")

    def open(self, run: SinkRun) -> _Log:
        """A run in the store; the same one, where the run goes on."""
        return _Log(run, self)


class _Log:
    def __init__(self, run: SinkRun, settings: MLflow) -> None:
        # Read on import. MLflow would send off what its user calls.
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # how tables are made is no news
        folder = run.path.absolute() / "mlflow"
        folder.mkdir(exist_ok=True)
        note, where = folder / "run.json", settings.tracking_uri or OWN
        known = known_id(note, where)
        if where == OWN and known is None:
            # Nothing was logged. A process that was killed while it made the tables has left what nobody can open.
            for left in folder.glob("mlflow.db*"):
                left.unlink()
        self._path, self._pictures = run.path, settings.pictures
        self._client = MlflowClient(tracking_uri=settings.tracking_uri or f"sqlite:///{folder / 'mlflow.db'}")
        if known is None:
            name = settings.experiment or str(run.experiment.get("name", run.name))
            known = note_id(note, where, self._new(run, name, folder.as_uri() if where == OWN else None))
        else:
            self._client.update_run(known, status="RUNNING")
        self._id = known
        held = self._client.get_run(self._id).data
        self._held = Held(
            (key, metric.step) for key in held.metrics for metric in self._client.get_metric_history(self._id, key)
        )
        self._log_parameters(flat(run.experiment), held.params)

    def round(self, record: RoundRecord) -> None:
        self._log(of_round(record), record.round)

    def attack(self, line: Mapping[str, Any]) -> None:
        self._log(of_attack(line), int(line.get("round") or 0))
        if line.get("picture") and self._pictures:  # of the same name: what is there is written over
            self._client.log_artifact(self._id, str(self._path / line["picture"]), "pictures")

    def end(self, status: str, facts: Mapping[str, Any]) -> None:
        for key, value in facts_alone(facts).items():
            self._client.set_tag(self._id, f"fedsim.{key}", str(value)[:LONGEST_TAG])
        self._client.set_terminated(self._id, STATUSES.get(status, "FAILED"))

    def _new(self, run: SinkRun, name: str, artifacts: str | None) -> str:
        """The id of a new run in the store. artifacts: where its pictures go, if not where the store has them."""
        there = self._client.get_experiment_by_name(name)
        id_ = there.experiment_id if there else self._client.create_experiment(name, artifact_location=artifacts)
        made = self._client.create_run(id_, run_name=run.name, tags={"fedsim.folder": str(run.path)})
        return str(made.info.run_id)

    def _log_parameters(self, settings: Mapping[str, Any], held: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(key[:250], str(value)) for key, value in settings.items() if key[:250] not in held]
        for start in range(0, len(params), BATCH):
            self._client.log_batch(self._id, params=params[start : start + BATCH])

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        metrics = [Metric(key, value, now, step) for key, value in numbers.items() if self._held.takes(key, step)]
        if metrics:  # all of them or none
            self._client.log_batch(self._id, metrics=metrics)
