"""What a sweep is: a space, a configuration, and how its trials are made."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments import runs
from experiments.sweep.space import Space, as_json, grid_points
from experiments.sweep.tuned import Tuned
from jaxsparse.training import ConfigError, RunError
from jaxsparse.training.rows import to_line


@dataclasses.dataclass(frozen=True)
class OwnFlags:  # no docstring: --help would begin with it
    space: tuple[str, ...] = ()
    """settings to choose, each NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=VALUE,VALUE,..."""
    trials: int | None = None
    """number of trials of the whole study, by all workers together; default: 64, or the grid"""
    batch: int = 8
    """trials that a worker takes at a time; trials that differ only in rates share a program"""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """how values are drawn; tpe: tree-structured Parzen estimator"""
    sampler_seed: int = 0
    """seed of the sampler"""
    trial_seeds: int = 1
    """seeds of each trial, the first ones of the run (online: these plus 1,000,000, which give
    other streams of the same images); the winner is run on all of --seeds"""
    prune: bool = True
    """end trials that are below the median of earlier ones at the same point"""
    study: str | None = None
    """name of the study; default: one made of the settings, so that equal commands share a study"""
    storage: str | None = None
    """URL of the database, as SQLAlchemy writes it; default: an SQLite file in --out"""
    out: Path | None = None
    """folder for trials, figures and the winner; default: runs/sweep/STUDY"""


class Sweep(NamedTuple):
    """A checked sweep.

    Attributes:
      tuned: the family of the runs, as a sweep sees it.
      config: the run's configuration; `space` replaces its values.
      space: name -> distribution.
      points: for each trial the values that are set beforehand.
      flags: the sweep's own flags.
      name: name of the study.
      out: the folder.
      command: the command line, to start the sweep again.
    """

    tuned: Tuned
    config: Any
    space: Space
    points: list[dict[str, Any]]
    flags: Any
    name: str
    out: Path
    command: str

    def setup(self) -> dict[str, Any]:
        """What all workers of a study must agree in. The data may be in different folders."""
        return _setup(self.tuned, self.config, self.space, self.flags)


def make_sweep(tuned: Tuned, config: Any, space: Space, flags: Any, command: str) -> Sweep:
    """The sweep over a space; see `Sweep`. `flags` has the attributes of `OwnFlags`."""
    points = _points(flags, space)
    digest = hashlib.sha256(to_line(_setup(tuned, config, space, flags)).encode()).hexdigest()
    name = flags.study or f"{tuned.family.label(config)}-{flags.sampler}-{digest[:8]}"
    out = runs.user_path("--out", flags.out or Path("runs") / "sweep" / name)
    if out.exists() and not out.is_dir():
        raise RunError(f"--out: {out} is a file, want a folder")
    return Sweep(tuned, config, space, points, flags, name, out, command)


def _points(flags: Any, space: Space) -> list[dict[str, Any]]:
    """For each slot of the study the values that are set beforehand."""
    if flags.sampler != "grid":
        return [{} for _ in range(64 if flags.trials is None else flags.trials)]
    points = grid_points(space)
    if flags.trials not in (None, len(points)):
        raise ConfigError(f"--trials must be the grid's {len(points)} points, got {flags.trials}")
    return points


def _setup(tuned: Tuned, config: Any, space: Space, flags: Any) -> dict[str, Any]:
    settings = dataclasses.asdict(config)
    settings.pop("data_dir", None)
    chosen = {name: value for name, value in settings.items() if name not in space}
    setup = {
        "family": runs.name_of(tuned.family),
        "config": chosen,
        "space": as_json(space),
        "sampler": flags.sampler,
        "sampler_seed": flags.sampler_seed,
        "trial_seeds": flags.trial_seeds,
    }
    return json.loads(to_line(setup))  # as the database returns it
