"""MLflow. Source: its documentation, https://mlflow.org/docs/latest/ml/tracking/."""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.loggers.service import Ending, Run

_STATUS: dict[Ending, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
# What MLflow accepts: entries of a call, characters of a parameter.
_METRICS, _PARAMETERS, _LENGTH = 1000, 100, 6000
# A server that does not answer stops the run for a minute at most, not for ten.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class MLflow:
    """Logs to the store that MLFLOW_TRACKING_URI names; default: mlflow.db next to the run."""

    place = ""
    _client: Any
    _id: str

    def open(self, run: Run, known: str | None) -> str:
        """Start or continue a run; see `Service`."""
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic", "urllib3"):  # they would print each step and each retry
            logging.getLogger(name).setLevel(logging.CRITICAL)
        given = os.environ.get("MLFLOW_TRACKING_URI")
        home = run.path.absolute().parent
        self._client = MlflowClient(given or _database(home))
        if known is None or not self._continues(known):
            self._id = self._start(run, None if given else home / "mlflow-artifacts")
        shown = "the store of MLFLOW_TRACKING_URI" if given else home / "mlflow.db"
        self.place = f"run {self._id} in {shown}"
        return self._id

    def _continues(self, known: str) -> bool:
        """Continue a run; False if the store has no such run."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(known, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        self._id = known
        return True

    def _start(self, run: Run, artifacts: Path | None) -> str:
        """Make a run with its parameters."""
        from mlflow.entities import Param

        experiment = self._experiment(
            os.environ.get("MLFLOW_EXPERIMENT_NAME", run.family),
            None if artifacts is None else artifacts.as_uri(),
        )
        made = self._client.create_run(experiment, run_name=run.path.absolute().name).info.run_id
        parameters = [Param(name, _text(value)) for name, value in run.settings.items()]
        for part in _parts(parameters, _PARAMETERS):
            self._client.log_batch(made, params=part)
        self._client.log_artifact(made, str(run.path / "config.json"))
        return made

    def _experiment(self, name: str, artifacts: str | None) -> str:
        """The id of an experiment, made if it is not there."""
        from mlflow.exceptions import MlflowException

        if (found := self._client.get_experiment_by_name(name)) is None:
            try:
                return self._client.create_experiment(name, artifacts)
            except MlflowException as error:  # another run has just made it
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(name)
        return found.experiment_id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a step."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        for part in _parts(metrics, _METRICS):
            self._client.log_batch(self._id, metrics=part)

    def figure(self, path: Path) -> None:
        """Store a PNG file with the run's artifacts."""
        self._client.log_artifact(self._id, str(path), "figures")

    def result(self, path: Path, values: Mapping[str, float]) -> None:
        """Log the numbers as metrics, and store the file with the run's artifacts."""
        self.scalars(0, values)
        self._client.log_artifact(self._id, str(path))

    def close(self, ending: Ending) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._id, _STATUS[ending])


def _database(folder: Path) -> str:
    """The URI of the database in a folder; an OSError if there cannot be one."""
    if set("?#%") & set(str(folder)):
        raise OSError(f"{folder} must have no ?, # or %, or set MLFLOW_TRACKING_URI")
    if not os.access(folder, os.W_OK):  # MLflow would try again for minutes
        raise OSError(f"cannot write to {folder}; set MLFLOW_TRACKING_URI")
    return f"sqlite:///{folder / 'mlflow.db'}"


def _text(value: Any) -> str:
    """A parameter as MLflow stores it."""
    return (value if isinstance(value, str) else json.dumps(value))[:_LENGTH]


def _parts(entries: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(entries), size):
        yield entries[first : first + size]
