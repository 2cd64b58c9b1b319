"""MLflow: the server or store that MLFLOW_TRACKING_URI names, else the file `mlflow.db` of the run."""

from __future__ import annotations

import logging
import os
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

from capsdist.config import Config
from capsdist.errors import Problem
from capsdist.runs.loggers.base import LoggedRun, Logger, curves, hyperparameters
from capsdist.storage.place import is_url
from capsdist.train.metrics import Row

if TYPE_CHECKING:
    import numpy as np
    from mlflow.tracking import MlflowClient

__all__ = ["MlflowLogger"]

_URI = "MLFLOW_TRACKING_URI"
_PARAMETERS = 100  # of one request


class MlflowLogger(Logger):
    """Logs curves, the configuration as parameters, and pictures; a run that goes on keeps its identifier.

    Steps that an attempt logs again are left out, because MLflow would keep both values.
    """

    def __init__(self, run: LoggedRun) -> None:
        self._run = run
        self._client: MlflowClient | None = None
        self._id = ""
        self._logged: dict[str, int] = {}  # last step of each curve
        self._status = "FAILED"

    @classmethod
    def problem(cls, config: Config) -> Problem | None:
        """Return what is missing: a package, or a store for a run that lies in object storage."""
        if missing := [name for name in ("mlflow", "sqlalchemy", "alembic") if not find_spec(name)]:
            fix = "pip install 'capsdist[mlflow]', or leave it out"
            return Problem("train.loggers", "mlflow", f"the package {missing[0]} is not installed", fix)
        if is_url(config.train.storage) and _URI not in os.environ:
            rule = f"has no store for a run in {config.train.storage!r}"
            return Problem("train.loggers", "mlflow", rule, f"set {_URI}, or leave it out")
        return None

    def log(self, row: Row) -> None:
        """Log the curves of one row."""
        from mlflow.entities import Metric

        if row["kind"] == "start":
            self._start(row)
        elif row["kind"] == "end":
            self._status = "KILLED" if row["stopped"] else "FINISHED"
        now, step = int(time.time() * 1000), row["step"]
        values = {name: value for name, value in curves(row).items() if self._new(name, step)}
        if values and self._client:
            metrics = [Metric(name, value, now, step) for name, value in values.items()]
            self._client.log_batch(self._id, metrics=metrics)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Log a picture."""
        if self._client:
            self._client.log_image(self._id, pixels, key=name, step=step)

    def _start(self, row: Row) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        folder = self._run.folder.resolve()
        client = MlflowClient(os.environ.get(_URI) or f"sqlite:///{folder / 'mlflow.db'}")

        def create() -> str:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "capsdist")
            experiment = client.get_experiment_by_name(name)
            artifacts = None if _URI in os.environ else (folder / "mlartifacts").as_uri()
            group = experiment.experiment_id if experiment else client.create_experiment(name, artifacts)
            return client.create_run(group, run_name=self._run.name).info.run_id

        self._id = self._run.identifier("mlflow", row, create)
        known = client.get_run(self._id).data
        client.update_run(self._id, status="RUNNING")
        self._logged = {
            name: max(metric.step for metric in client.get_metric_history(self._id, name))
            for name in known.metrics
        }
        if not known.params:  # which never change in MLflow
            pairs = [Param(name, str(value)) for name, value in hyperparameters(self._run.config).items()]
            for first in range(0, len(pairs), _PARAMETERS):
                client.log_batch(self._id, params=pairs[first : first + _PARAMETERS])
        self._client, self._status = client, "FAILED"

    def _new(self, name: str, step: int) -> bool:
        """Note that the curve `name` gets a value at `step`; return whether it has none there yet."""
        before = self._logged.get(name, -1)
        self._logged[name] = max(before, step)
        return step > before

    def close(self) -> None:
        """Finish: as failed where no `end` row came, as killed where the run was stopped."""
        if self._client:
            self._client.set_terminated(self._id, self._status)
            self._client = None
