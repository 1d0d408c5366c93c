"""The results a table is made of: those that are there, and those still to be run."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments import cli, continual, runs
from experiments.continual.scan import Grid, scan, scan_path
from experiments.tables.saved import Saved, SavedRun, content
from jaxsparse.data import DataError
from jaxsparse.training import ConfigError, RunError, RunFolder
from jaxsparse.training.continual import ContinualConfig


@contextmanager
def _own_errors() -> Iterator[None]:
    """Tell an error in a run from what a damaged result makes a table fail with."""
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
      saved: a results file to read in place of `out`; nothing is run.
      pictures: the folder that figures are drawn into; default: `out`.

    Attributes:
      found: by name, what a results file keeps of each run that was asked for and is there.
    """

    def __init__(
        self,
        out: Path,
        missing: bool,
        command: str,
        saved: Saved | None = None,
        pictures: Path | None = None,
    ):
        self.place, self.missing, self.command = saved.path if saved else out, missing, command
        self.pictures = pictures or out
        self.found: dict[str, dict[str, Any]] = {}
        self._saved = saved

    def result(self, family: runs.Family, name: str, config: Any) -> dict[str, Any] | None:
        """The result of a run called `name`; None where it is not there and not to be run.

        Raises:
          RunError: the folder holds a run of another configuration.
        """
        folder = self._checked(family, name, config)
        result = folder.result() if folder else None
        if self.missing:
            place = folder or self.place / name
            with _own_errors():
                folder, done = runs.run(family, config, place, self.command)
            runs.draw_missing(family, folder, done)
            result = done
        self._keep(folder, result)
        return result

    def check_found(self) -> None:
        """Refuse what would be empty: nothing that is there gives way to a table of nothing.

        Raises:
          RunError: no result was there.
        """
        if not self.found:
            raise RunError(f"there is nothing to show: {self.place} holds none of these runs")

    def scan(
        self, name: str, config: ContinualConfig, grid: Grid
    ) -> tuple[ContinualConfig, list[dict[str, Any]]] | None:
        """The configuration a scan chooses, and its points; None as for `result`."""
        out = self.place / name
        paths = [scan_path(out, glances) for glances in grid.glances]
        if not self.missing and not all(self._has_result(path) for path in paths):
            return None
        with _own_errors():
            chosen = scan(continual, config, grid, out, self.command, self._open)
        for path in paths:
            folder = self._open(path, continual.UNIT)
            self._keep(folder, folder.result() if folder else None)
        return chosen

    def rows(self, family: runs.Family, name: str, *entries: str) -> list[dict[str, Any]]:
        """The metrics of a run whose result was there; of each row these entries, or all."""
        path = self.place / name
        folder = self._open(path, family.UNIT) or RunFolder.open(path, family.UNIT)
        rows = [{entry: row[entry] for entry in entries or row} for row in folder.rows()]
        self.found[name]["rows"] = rows
        return rows

    def _keep(self, folder: RunFolder | None, result: dict[str, Any] | None) -> None:
        if folder is not None and result is not None:
            self.found[folder.path.name] = content(folder, result)

    def _has_result(self, path: Path) -> bool:
        folder = self._open(path, continual.UNIT)
        return folder is not None and folder.result() is not None

    def _open(self, path: Path, unit: str) -> RunFolder | None:
        """The run at `path`, a folder or an entry of the results file; None: there is none."""
        if self._saved is None:
            return runs.open_if_there(path, unit)
        kept = self._saved.runs.get(path.name)
        return None if kept is None else SavedRun(path, unit, kept)

    def _checked(self, family, name, config) -> RunFolder | None:
        """The run of this name, if it is there; it has to be of this configuration."""
        path = self.place / name
        folder = self._open(path, family.UNIT)
        if folder is None:
            return None
        there = dataclasses.replace(runs.stored_config(family, folder), data_dir=config.data_dir)
        if there != config:
            differences = cli.differing(dataclasses.asdict(config), dataclasses.asdict(there))
            raise RunError(f"{path} holds a run of another configuration: {differences}")
        return folder
