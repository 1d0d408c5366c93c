"""A scan: a grid search for the rates and glances with the highest RA on held-out images."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import cli, runs
from experiments.continual.load import check_size
from experiments.continual.report import StreamReport
from jaxsparse.training import ConfigError, RunError, RunFolder
from jaxsparse.training.continual import (
    META_METHODS,
    ContinualConfig,
    Rates,
    scan_stream,
    used_rates,
)
from jaxsparse.training.errors import trusting


class Grid(NamedTuple):
    """The values that a scan tries; for an empty entry, only the configuration's value."""

    inner_lr: tuple[float, ...] = ()
    mask_lr: tuple[float, ...] = ()
    theta_lr: tuple[float, ...] = ()
    glances: tuple[int, ...] = ()

    def or_usual(self, config: ContinualConfig) -> "Grid":
        """This grid, or if it is empty the usual one for the configuration's method."""
        if any(self):
            return self
        usual: dict[str, tuple[float, ...]] = {
            "inner_lr": (0.05, 0.1, 0.15),
            "mask_lr": (0.3, 0.75, 1.7),
            "theta_lr": tuple(config.theta_lr * factor for factor in (0.3, 1.0, 3.0)),
        }
        glances = (5, 10) if config.method in META_METHODS else ()
        return Grid(**{name: usual[name] for name in used_rates(config)}, glances=glances)


def choose(
    family: runs.Family, opened: runs.Opened, args: Sequence[str]
) -> tuple[ContinualConfig, dict[str, Any]]:
    """The configuration to run, with --scan chosen by a scan, and further entries of its record."""
    config = opened.config
    grid = grid_of(opened, args)
    if grid is None:
        return config, {}
    family.load_data(config)  # fail now rather than after the scan
    place = [] if opened.flags.out else ["--out", opened.path]
    resume_command = cli.command_line(runs.command_of(family), [*args, *place])
    config, points = scan(family, config, grid, opened.path, resume_command)
    return config, {"scan": points}


def grid_of(opened: runs.Opened, args: Sequence[str]) -> Grid | None:
    """The grid that the flags describe, checked; None without --scan."""
    names = [name for name in Grid._fields if f"grid_{name}" in cli.given(args)]
    if not opened.flags.scan:
        if names:
            raise ConfigError(f"{_grid_flag(names[0])} is read only with --scan")
        return None
    if opened.flags.hosts.distributed:
        raise ConfigError("--scan is not read with --distributed; see experiments.sweep")
    given = Grid(*(getattr(opened.flags, f"grid_{name}") for name in Grid._fields))
    for name in names:
        _check_axis(opened.config, name, getattr(given, name))
    return given.or_usual(opened.config)


def _grid_flag(name: str) -> str:
    return f"--grid-{name.replace('_', '-')}"


def _check_axis(config: ContinualConfig, name: str, values: tuple[Any, ...]) -> None:
    flag = _grid_flag(name)
    if not values:
        raise ConfigError(f"{flag} must have at least one value, got none")
    if len(set(values)) < len(values):
        raise ConfigError(f"{flag} must have different values, got {values}")
    if name not in (*used_rates(config), "glances"):
        raise ConfigError(f"{flag} is not read with --method {config.method}")
    for value in values:
        try:
            dataclasses.replace(config, validation=True, **{name: value})
        except ConfigError as error:
            raise ConfigError(f"{flag}: {error}") from error


def scan(
    family: runs.Family,
    config: ContinualConfig,
    grid: Grid,
    out: Path,
    resume_command: str,
    open_scan: Callable[[Path, str], RunFolder | None] = runs.open_if_there,
) -> tuple[ContinualConfig, list[dict[str, Any]]]:
    """Choose the rates and glances with the highest RA on held-out training images.

    One program for each number of glances runs the whole grid of rates. Its folder is next to the
    run's folder, and a stopped scan is resumed from it.

    Args:
      family: continual learning.
      config: the run's configuration.
      grid: the values to choose from.
      out: the run's folder.
      resume_command: the command to show if the scan is stopped.
      open_scan: `(path, unit) ->` the folder of the scan at a path, or None.

    Returns:
      The chosen configuration, and the points with their RA.
    """
    points = []
    axes = (getattr(grid, name) or (getattr(config, name),) for name in Rates._fields)
    rates = [Rates(*values) for values in itertools.product(*axes)]
    for glances in grid.glances or (config.glances,):
        held_out = dataclasses.replace(config, validation=True, glances=glances)
        folder, of_scan = _scan_folder(family, out, held_out, rates, open_scan)
        result = folder.result() if folder else None
        if result is None:
            stream = family.load_data(held_out)
            check_size(held_out, stream, len(rates) * config.seeds)
            place = folder or scan_path(out, glances)
            folder = runs.ready_run(family, place, held_out, stream, **of_scan)
            with (
                cli.saving_on_signal(resume_command) as should_stop,
                StreamReport(held_out, folder.path) as report,
            ):
                result = scan_stream(held_out, rates, stream, folder, report.hooks(should_stop))
        assert folder is not None
        with trusting(folder.path / "result.json"):
            points += [{"glances": glances, **point} for point in result["points"]]
    with trusting(out):
        best = max(points, key=_retained)
        StreamReport(config, out).scan(points, best)
        chosen = {name: best[name] for name in (*Rates._fields, "glances")}
    return dataclasses.replace(config, **chosen), points


def _retained(point: dict[str, Any]) -> float:
    """The RA of a point; -inf if it is not finite (null in the file)."""
    mean = point["retained_accuracy"]["mean"]
    return mean if mean is not None and mean == mean else -math.inf


def scan_path(out: Path, glances: int) -> Path:
    """The folder of the scan with this number of glances, next to the run's folder."""
    place = out if out.name else out.absolute()  # "." has no name
    return place.with_name(f"{place.name}-scan-{glances}-glances")


def _scan_folder(
    family: runs.Family,
    out: Path,
    config: ContinualConfig,
    grid: list[Any],
    open_scan: Callable[..., Any],
) -> tuple[RunFolder | None, dict[str, Any]]:
    """The folder of this scan or None, and the further entries of a new one's record."""
    path = scan_path(out, config.glances)
    of_scan = {"grid": [rates._asdict() for rates in grid]}
    folder = open_scan(path, family.UNIT)
    if folder is None:
        return None, of_scan
    stored = runs.stored_config(family, folder)
    if not runs.same_run(stored, config) or folder.config().get("grid") != of_scan["grid"]:
        raise RunError(f"{path} holds a different scan; choose another --out")
    return folder, of_scan
