"""Sends a run to the loggers of --logger. An error of a service never ends a run that it knows."""

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.loggers import mlflow, wandb
from experiments.loggers.flags import TENSORBOARD, LoggerFlags
from experiments.loggers.service import Ending, Run, Service, flat_result, flat_settings
from experiments.loggers.state import read_state, write_state
from jaxsparse.training import Hooks, RunError, RunFolder, processes
from jaxsparse.training.errors import one_line

_SERVICES: dict[str, Callable[[], Service]] = {
    "wandb": wandb.WeightsAndBiases,
    "mlflow": mlflow.MLflow,
}


class Loggers:
    """The loggers of one run, as a context that closes them.

    metrics.jsonl says what there is to log. A service is sent the rows after the last one that it
    has, so each row once, whether a run is resumed or a logger is added later.

    Args:
      flags: the chosen loggers.

    Examples:
      >>> with Loggers(LoggerFlags(("wandb",))) as loggers:
      ...     hooks = loggers.hooks(hooks, folder, print)
      ...     result = learn(config, data, folder, hooks)
      ...     loggers.finish(folder, result, [folder.path / "curves.png"])
    """

    def __init__(self, flags: LoggerFlags = TENSORBOARD):
        self.names: list[str] = [name for name in flags.logger if name != "none"]
        self._state: dict[str, Any] = {}  # the contents of loggers.json
        self._is_open = False
        self._services: dict[str, Service] = {}

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        ending: Ending = "finished" if kind is None else "failed"
        # Our signals end a command with 128 + their number.
        if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
            ending = "stopped"
        for name in list(self._services):
            self._try(name, lambda service: service.close(ending))
        self._services = {}

    def hooks(self, hooks: Hooks, folder: RunFolder, say: Callable[[str], None]) -> Hooks:
        """Hooks that also log; process 0 is the one that does.

        Args:
          hooks: the hooks of a run.
          folder: the run's folder.
          say: prints a line: where the run is shown.
        """
        if "tensorboard" not in self.names:
            folder.tensorboard = None
        if not processes.is_first():
            return hooks

        def progress(progress):
            # The run holds the lock of its folder now, and has dropped the rows that it repeats.
            self._open(folder, say)
            hooks.progress(progress)

        def row(row):
            hooks.row(row)
            self._open(folder, say)
            for name in list(self._services):
                self._send(name, folder, [row])

        return hooks._replace(progress=progress, row=row)

    def finish(self, folder: RunFolder, result: dict[str, Any], figures: Sequence[Path]) -> None:
        """Log the figures and the result of a finished run, unless they are logged already.

        Raises:
          RunError: a service that does not know the run yet cannot be opened.
        """
        state = self._state if self._is_open else read_state(folder.path)
        if all(state.get(name, {}).get("finished") for name in self.names if name in _SERVICES):
            return
        self._open(folder, lambda line: None)
        for name in list(self._services):
            self._try(name, functools.partial(self._finish, name, folder, result, figures))

    def _finish(self, name, folder, result, figures, service):
        for path in figures:
            service.figure(path)
        service.result(folder.path / "result.json", flat_result(result))
        self._state[name]["finished"] = True
        write_state(folder.path, self._state)

    def _open(self, folder: RunFolder, say: Callable[[str], None]) -> None:
        """Open the services and send them the rows that they lack."""
        if self._is_open:
            return
        self._is_open, self._state = True, read_state(folder.path)
        names = self.names or ["none"]
        if names != self._state.get("loggers", list(TENSORBOARD.logger)):
            self._state["loggers"] = names
            write_state(folder.path, self._state)
        record = folder.config()
        run = Run(folder.path, record.get("experiment", ""), flat_settings(record))
        for name in self.names:
            if name in _SERVICES and not self._state.get(name, {}).get("finished"):
                self._open_one(name, run, folder, say)

    def _open_one(self, name, run, folder, say):
        known = self._state.get(name, {}).get("id")
        service = _SERVICES[name]()
        try:
            with warnings.catch_warnings(action="ignore"):  # of the client, for its authors
                identity = service.open(run, known)
        except Exception as error:
            if known is None:  # whoever starts the run is there to read this
                raise RunError(f"--logger {name}: {one_line(error)}") from error
            _warn(name, error)
            return
        if identity != known:
            self._state[name] = {"id": identity, "step": -1, "finished": False}
            write_state(folder.path, self._state)
        self._services[name] = service
        say(f"{name}: {service.place}")
        self._send(name, folder, folder.rows())

    def _send(self, name: str, folder: RunFolder, rows: Sequence[dict[str, Any]]) -> None:
        def send(service: Service) -> None:
            for row in rows:
                if row["step"] > self._state[name]["step"]:
                    service.scalars(row["step"], folder.scalars(row))
                    self._state[name]["step"] = row["step"]
                    write_state(folder.path, self._state)

        self._try(name, send)

    def _try(self, name: str, use: Callable[[Service], None]) -> None:
        """Use a service; after an error it is not used again in this process."""
        if (service := self._services.get(name)) is None:
            return
        try:
            with warnings.catch_warnings(action="ignore"):
                use(service)
        except Exception as error:
            del self._services[name]
            _warn(name, error)


def _warn(name: str, error: Exception) -> None:
    warnings.warn(
        f"--logger {name}: {one_line(error)}; the run goes on without it, and --resume sends what"
        " it lacks",
        stacklevel=2,
    )
