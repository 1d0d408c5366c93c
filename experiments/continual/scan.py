"""`--scan`: a sweep over a grid of rates and glances on held-out images, then the run."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import cli, runs
from jaxsparse.training import ConfigError
from jaxsparse.training.continual import META_METHODS, ContinualConfig, Rates, used_rates


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
            "theta_lr": tuple(dict.fromkeys(config.theta_lr * x for x in (0.3, 1.0, 3.0))),
        }
        glances = (5, 10) if config.method in META_METHODS else ()
        return Grid(**{name: usual[name] for name in used_rates(config)}, glances=glances)

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The settings with values to try; rates vary fastest, as they share a program."""
        names = ("glances", *Rates._fields)
        return {name: values for name in names if (values := getattr(self, name))}

    def points(self) -> list[dict[str, Any]]:
        """All combinations of the values."""
        axes = self.axes()
        return [
            dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
        ]


def choose(
    family: runs.Family, opened: runs.Opened, args: Sequence[str]
) -> tuple[ContinualConfig, dict[str, Any]]:
    """The configuration to run, with --scan chosen by a sweep, and more entries of its record."""
    config = opened.config
    grid = grid_of(opened, args)
    if grid is None:
        return config, {}
    cli.need_optuna("--scan")
    family.load_data(config)  # fail now rather than after the sweep
    place = [] if opened.flags.out else ["--out", opened.path]
    command = cli.command_line(runs.command_of(family), [*args, *place])
    return scan(family, config, grid, opened.path, command)


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
    family: runs.Family, config: ContinualConfig, grid: Grid, out: Path, command: str
) -> tuple[ContinualConfig, dict[str, Any]]:
    """Choose the values of a grid with the highest RA on held-out training images by a sweep.

    One program for each number of glances runs the whole grid of rates with all seeds.

    Args:
      family: continual learning.
      config: the run's configuration.
      grid: the values to choose from.
      out: the run's folder; that of the sweep is next to it.
      command: the command to show if the sweep is stopped.

    Returns:
      The chosen configuration, and the entries of its run's record: the sweep and its points.
    """
    from optuna.distributions import CategoricalDistribution

    from experiments.sweep.definition import OwnFlags, make_sweep
    from experiments.sweep.search import searched
    from experiments.sweep.tuned import TunedContinual

    space: dict[str, Any] = {n: CategoricalDistribution(v) for n, v in grid.axes().items()}
    count = math.prod(map(len, grid.axes().values()))
    flags = OwnFlags(
        batch=count, sampler="grid", trial_seeds=config.seeds, prune=False, out=sweep_path(out)
    )
    config = runs.with_absolute_paths(config)
    own = make_sweep(TunedContinual(family), config, space, flags, command)
    with searched(own) as (_, trials):
        best = trials[0]
        points = [{**trial.params, "value": trial.value} for trial in trials]
    record = {"study": own.name, "trial": best.number, "value": best.value, "points": points}
    return dataclasses.replace(config, **best.params), {"sweep": record}


def sweep_path(out: Path) -> Path:
    """The folder of the sweep, next to the run's folder."""
    place = out if out.name else out.absolute()  # "." has no name
    return place.with_name(f"{place.name}-sweep")
