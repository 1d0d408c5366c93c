"""The runs of a table: finds existing results and runs what is missing."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments import cli, continual, evaluate, fewshot, runs
from experiments.continual.scan import Grid, scan, sweep_path
from experiments.tables import scans
from experiments.tables.saved import Saved, SavedRun, content
from jaxsparse.data import DataError
from jaxsparse.training import ConfigError, FewShotConfig, RunError, RunFolder
from jaxsparse.training.continual import ContinualConfig, Rates
from jaxsparse.training.errors import trusting
from jaxsparse.training.fewshot.tested import finished


@contextmanager
def _run_errors() -> Iterator[None]:
    """Raise unexpected errors of a run as `RuntimeError`: others come from damaged results."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RuntimeError("a run failed") from error


def _with_same_place(stored: Any, config: Any) -> Any:
    """`stored`, with the path of `theta_from` as in `config` if both name the same run."""
    ours, theirs = (getattr(one, "theta_from", None) for one in (config, stored))
    if ours and theirs and Path(ours).name == Path(theirs).name:
        return dataclasses.replace(stored, theta_from=ours)
    return stored


class Runner:
    """Finds the results of runs, and runs what is missing.

    Args:
      place: the folder of the run folders; a results file that is read alone.
      missing: whether to run what is missing.
      command: the command that resumes the table's runs.
      saved: results files with the runs that `place` lacks, the first one first.
      pictures: the folder that figures are written to; default: `place`.

    Attributes:
      found: name -> what a results file keeps of the run, for the requested runs that exist.
    """

    def __init__(
        self,
        place: Path,
        missing: bool,
        command: str,
        saved: Sequence[Saved] = (),
        pictures: Path | None = None,
    ):
        self.place, self.missing, self.command = place, missing, command
        self.pictures = pictures or place
        self.found: dict[str, dict[str, Any]] = {}
        self._saved = saved

    def result(self, family: runs.Family, name: str, config: Any) -> dict[str, Any] | None:
        """The result of the run `name`; None if it does not exist and is not to be run."""
        folder = self._checked(family, name, config)
        result = folder.result() if folder else None
        if self.missing and not isinstance(folder, SavedRun):
            place = folder or self.place / name
            with _run_errors():
                folder, done = runs.run(family, config, place, self.command)
            runs.draw_missing(family, folder, done)
            result = done
        self._keep(folder, result)
        return result

    def check_found(self) -> None:
        """Refuse an empty table: it must not replace an existing one."""
        if not self.found:
            raise RunError(f"there is nothing to show: {self.place} holds none of these runs")

    def scan(
        self, name: str, config: ContinualConfig, grid: Grid
    ) -> tuple[ContinualConfig, list[dict[str, Any]]] | None:
        """The configuration that a scan chooses, and its points; None as in `result`."""
        path = self.place / name
        points = scans.stored(path, config, grid, runs.open_if_there, self.found)
        if points is None and not sweep_path(path).exists():
            points = scans.stored(path, config, grid, self._saved_run, self.found)
        if points is None:
            if self.missing:
                cli.need_optuna("a scan")
                with _run_errors():
                    scan(continual, config, grid, path, self.command)
            points = scans.swept(path, config, grid, self.found)
        if not points:
            return None
        with trusting(self.place):
            best = max(points, key=scans.retained)
            chosen = {setting: best[setting] for setting in (*Rates._fields, "glances")}
        return dataclasses.replace(config, **chosen), points

    def rows(self, family: runs.Family, name: str, *entries: str) -> list[dict[str, Any]]:
        """The metrics of a run that was found; only these entries of each row, by default all."""
        path = self.place / name
        folder = self._open(path, family.UNIT) or RunFolder.open(path, family.UNIT)
        rows = [{entry: row[entry] for entry in entries or row} for row in folder.rows()]
        self.found[name]["rows"] = rows
        return rows

    def evaluation(self, name: str, config: FewShotConfig, dataset: str, steps: int) -> Any:
        """The result of a run on other data with `steps` inner steps; None as in `result`."""
        folder = self._open(self.place / name, fewshot.UNIT)
        test = evaluate.test_of(evaluate.Flags(self.place, test_inner_steps=steps), config)
        key = evaluate.name_of(dataset, test)
        if folder is None:
            return None
        if isinstance(folder, SavedRun):
            tested = folder.evaluation(key)
        elif not self.missing:
            file = folder.path / evaluate.FOLDER / f"{key}.json"
            tested = evaluate.stored(file, dataset, test) or self._saved_test(folder, key)
        else:
            with _run_errors():
                run = finished(folder.path)
                images = evaluate.image_format(run)
                tested = evaluate.evaluation(run, images, dataset, test, config.data_dir)
        if tested is None:
            return None
        self.found[name].setdefault("evaluations", {})[key] = tested
        return tested["result"]

    def _keep(self, folder: RunFolder | None, result: dict[str, Any] | None) -> None:
        if folder is not None and result is not None:
            self.found[folder.path.name] = content(folder, result)

    def _open(self, path: Path, unit: str) -> RunFolder | None:
        """The run at `path`, a folder or an entry of a results file, or None.

        A folder comes first, unless its run is not finished and is not to be continued.
        """
        folder = runs.open_if_there(path, unit)
        if folder is None or (not self.missing and folder.result() is None):
            return self._saved_run(path, unit) or folder
        return folder

    def _saved_test(self, folder: RunFolder, key: str) -> dict[str, Any] | None:
        """A test of the run in `folder` that only a results file has, or None."""
        kept = self._saved_run(folder.path, fewshot.UNIT)
        same = kept is not None and kept.result() == self.found[folder.path.name]["result"]
        return kept.evaluation(key) if kept and same else None

    def _saved_run(self, path: Path, unit: str) -> SavedRun | None:
        """The run in the first results file that has it, or None."""
        for file in self._saved:
            if path.name in file.runs:
                return SavedRun(file.path / path.name, unit, file.runs[path.name])
        return None

    def _checked(self, family, name, config) -> RunFolder | None:
        """The run of this name, or None; a different configuration is a `RunError`."""
        path = self.place / name
        folder = self._open(path, family.UNIT)
        if folder is None:
            return None
        stored = dataclasses.replace(runs.stored_config(family, folder), data_dir=config.data_dir)
        stored = _with_same_place(stored, config)
        if stored != config:
            differences = cli.differing(dataclasses.asdict(config), dataclasses.asdict(stored))
            raise RunError(f"{folder.path} holds a run of another configuration: {differences}")
        return folder
