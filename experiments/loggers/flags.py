"""The flag --logger."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from experiments import cli
from experiments.loggers.state import read_state
from jaxsparse.training import RunError

Name = Literal["tensorboard", "wandb", "mlflow", "none"]
NAMES: tuple[str, ...] = get_args(Name)

# Logger -> the modules it needs and its name in messages.
_NEEDS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "wandb": (("wandb",), "Weights & Biases"),
    # The packages that MLflow stores runs in SQLite with are no dependencies of mlflow-skinny.
    "mlflow": (("mlflow", "sqlalchemy", "alembic"), "MLflow"),
}


@dataclasses.dataclass(frozen=True)
class LoggerFlags:  # no docstring: it would be a text of --help
    logger: tuple[Name, ...] = ("tensorboard",)
    """where metrics, figures and the result are logged, besides the run's folder; one or more. A
    resumed run keeps its loggers unless this flag is given (see docs/runs.md)"""

    def words(self) -> list[str]:
        """The flag as words, to show a command."""
        return [] if self == TENSORBOARD else ["--logger", *self.logger]


TENSORBOARD = LoggerFlags()


def check(flags: LoggerFlags) -> None:
    """Refuse loggers that cannot be used, with one line and exit status 2."""
    names = flags.logger
    if not names:
        cli.fail("--logger must have at least one value, got none")
    if len(set(names)) < len(names):
        cli.fail(f"--logger must have different values, got {' '.join(names)}")
    if "none" in names and len(names) > 1:
        cli.fail(f"--logger none goes with no other logger, got {' '.join(names)}")
    for name in names:
        modules, title = _NEEDS.get(name, ((), ""))
        cli.need(modules, f"--logger {name}", title, name)


def of_run(path: Path) -> LoggerFlags:
    """The loggers of an existing run.

    Raises:
      RunError: the folder's record of them cannot be read.
    """
    names = read_state(path).get("loggers", TENSORBOARD.logger)
    if not isinstance(names, list | tuple) or not all(n in NAMES for n in names):
        raise RunError(f"{path} has unknown loggers {names!r}, want some of {', '.join(NAMES)}")
    return LoggerFlags(tuple(names))
