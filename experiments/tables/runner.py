"""The results a table is made of: those that are there, and those still to be run."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import cli, runs

if TYPE_CHECKING:
    from jaxsparse.training import RunFolder
    from jaxsparse.training.continual import ContinualConfig


@contextmanager
def _own_errors() -> Iterator[None]:
    """Tell an error in a run from what a damaged result makes a table fail with."""
    from jaxsparse.data import DataError
    from jaxsparse.training import ConfigError

    try:
        yield
    except (ConfigError, DataError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RuntimeError("a run failed") from error


class Runner:
    """Gives the results of runs, running those that are missing.

    Args:
      out: the folder of the runs' folders.
      missing: whether to run what is missing.
      command: what goes on with the table when it is stopped.
    """

    def __init__(self, out: Path, missing: bool, command: str):
        self.out, self.missing, self.command = out, missing, command
        self._found = 0

    def result(self, experiment: runs.Experiment, name: str, config: Any) -> dict[str, Any] | None:
        """The result of a run called `name`; None where it is not there and not to be run.

        Raises:
          RunError: the folder holds a run of another configuration.
        """
        folder = self._folder(experiment, name, config)
        result = folder.result() if folder else None
        if self.missing:
            place = folder or self.out / name
            with _own_errors():
                folder, done = runs.run(experiment, config, place, self.command)
            runs.draw_missing(experiment, folder, done)
            result = done
        self._found += result is not None
        return result

    def check_found(self) -> None:
        """Refuse what would be empty: nothing that is there gives way to a table of nothing.

        Raises:
          RunError: no result was there.
        """
        from jaxsparse.training import RunError

        if not self._found:
            raise RunError(f"there is nothing to show: --out {self.out} holds none of these runs")

    def scan(
        self, name: str, config: "ContinualConfig", grid: Any
    ) -> tuple["ContinualConfig", list[dict[str, Any]]] | None:
        """The configuration a scan chooses, and its points; None as for `result`."""
        from experiments import continual

        out = self.out / name
        paths = [continual.scan_path(out, glances) for glances in grid.glances]
        if not self.missing and not all((path / "result.json").is_file() for path in paths):
            return None
        self._found += 1
        with _own_errors():
            return continual.scan(config, grid, out, self.command)

    def rows(self, experiment: runs.Experiment, name: str) -> list[dict[str, Any]]:
        """The metrics of a run that is there."""
        from jaxsparse.training import RunFolder

        return RunFolder.open(self.out / name, experiment.unit).rows()

    def _folder(self, experiment, name, config) -> "RunFolder | None":
        from jaxsparse.training import RunError, RunFolder

        path = self.out / name
        if not RunFolder.is_there(path):
            return None
        folder = RunFolder.open(path, experiment.unit)
        there = dataclasses.replace(
            runs.stored_config(experiment, folder), data_dir=config.data_dir
        )
        if there != config:
            differences = cli.differing(dataclasses.asdict(config), dataclasses.asdict(there))
            raise RunError(f"{path} holds a run of another configuration: {differences}")
        return folder
