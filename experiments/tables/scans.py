"""The points of a scan: the values of a grid, and the RA of each on held-out images.

A results file has an entry for each number of glances.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import continual, runs
from experiments.continual.scan import Grid, sweep_path
from experiments.sweep import results
from experiments.tables.saved import content
from jaxsparse.training import RunError, RunFolder
from jaxsparse.training.continual import ContinualConfig, Rates, default_rates
from jaxsparse.training.errors import trusting

Points = list[dict[str, Any]]


def stored(
    out: Path,
    config: ContinualConfig,
    grid: Grid,
    open_run: Callable[[Path, str], RunFolder | None],
    found: dict[str, dict[str, Any]],
) -> Points | None:
    """The points in a results file, or in folders of scans that were made before sweeps.

    Args:
      out: the folder of the run that the scan is for.
      config: its configuration.
      grid: the values.
      open_run: `(path, unit) ->` the entry at a path, or None.
      found: what a results file keeps; the entries are added.

    Raises:
      RunError: an entry holds another scan.
    """
    points: Points = []
    for glances in grid.glances:
        path = _entry(out, glances)
        folder = open_run(path, continual.UNIT)
        result = folder.result() if folder else None
        if folder is None or result is None:
            return None
        with trusting(folder.path / "result.json"):
            own = [{"glances": glances, **point} for point in result["points"]]
            there = [_values(point) for point in own]
        wanted = [_values(p) for p in _all(config, grid) if p["glances"] == glances]
        if there != wanted or not _same_but_rates(folder, config, glances):
            raise RunError(f"{path} holds a different scan; choose another --out")
        found[path.name] = content(folder, result)
        points += own
    return points


def swept(
    out: Path, config: ContinualConfig, grid: Grid, found: dict[str, dict[str, Any]]
) -> Points | None:
    """The points of a finished sweep, as `stored` has them; None if there is none."""
    place = sweep_path(out)
    trials = results.trials_of(place, dataclasses.asdict(config))
    if trials is None:
        return None
    with trusting(place):
        values = {
            _values({**dataclasses.asdict(config), **t["params"]}): t["value"] for t in trials
        }
    points = [
        {**point, "retained_accuracy": {"mean": values[_values(point)], "std": None}}
        for point in _all(config, grid)
        if _values(point) in values
    ]
    for glances in grid.glances:
        own = [
            {name: value for name, value in point.items() if name != "glances"}
            for point in points if point["glances"] == glances
        ]  # fmt: skip
        if (folder := _a_trial(place, glances)) is not None:
            entry = content(folder, {"points": own})
            found[_entry(out, glances).name] = {n: v for n, v in entry.items() if n != "trials"}
    return points


def retained(point: dict[str, Any]) -> float:
    """The RA of a point; -inf if it is not finite (null in the file)."""
    mean = point["retained_accuracy"]["mean"]
    return mean if mean is not None and mean == mean else -math.inf


def _same_but_rates(folder: RunFolder, config: ContinualConfig, glances: int) -> bool:
    """Whether a scan has these settings; the points have their own rates."""
    rates = default_rates(config)._asdict()
    there = dataclasses.replace(runs.stored_config(continual, folder), **rates)
    return runs.same_run(there, dataclasses.replace(config, validation=True, glances=glances))


def _entry(out: Path, glances: int) -> Path:
    return out.with_name(f"{out.name}-scan-{glances}-glances")


def _all(config: ContinualConfig, grid: Grid) -> Points:
    """The rates and glances of each point, in the order of the grid."""
    usual = {name: getattr(config, name) for name in ("glances", *Rates._fields)}
    return [{**usual, **point} for point in grid.points()]


def _values(point: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(point[name] for name in ("glances", *Rates._fields))


def _a_trial(place: Path, glances: int) -> RunFolder | None:
    """A run of a sweep with this number of glances."""
    for path in sorted((place / "trials").glob("*")):
        folder = runs.open_if_there(path, continual.UNIT)
        if folder is not None and folder.config()["config"]["glances"] == glances:
            return folder
    return None
