"""MLflow. Its own variables choose server and experiment: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bimkern import optional, pieces
from bimkern.train.reporting.loggers.logger import LoggedRun, Logger
from bimkern.train.reporting.scalars import Scalar

_EXPERIMENT = "bimkern"
_PARAMETERS_AT_ONCE = 100  # as many as a server takes


@pieces.register(Logger)
@dataclass(frozen=True)
class MLflow:
    """A run of MLflow."""

    package: ClassVar[str | None] = "mlflow"

    def open(self, run: LoggedRun) -> "_Run":
        return _Run(run)


class _Run:
    def __init__(self, run: LoggedRun) -> None:
        self._mlflow: Any = optional.load("mlflow")
        self._client = self._mlflow.MlflowClient()
        if run.id is None:
            experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT))
            self.id: str = self._client.create_run(experiment, run_name=run.folder.name).info.run_id
        else:
            self.id = run.id
            self._client.update_run(self.id, status="RUNNING")

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if found is None else found.experiment_id

    def hyperparameters(self, values: Mapping[str, Scalar]) -> None:
        parameters = [self._mlflow.entities.Param(name, str(value)) for name, value in values.items()]
        for first in range(0, len(parameters), _PARAMETERS_AT_ONCE):
            self._client.log_batch(self.id, params=parameters[first : first + _PARAMETERS_AT_ONCE])

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metric = self._mlflow.entities.Metric
        self._client.log_batch(self.id, metrics=[metric(name, value, now, step) for name, value in values.items()])

    def picture(self, step: int, path: Path) -> None:
        self._client.log_artifact(self.id, str(path), "pictures")

    def close(self) -> None:
        self._client.set_terminated(self.id)
