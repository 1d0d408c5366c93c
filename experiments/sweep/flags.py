"""The flags of a sweep: its own, and those of the run whose settings it chooses."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments import cli, runs, unread
from experiments.sweep.families import FAMILIES, Tuned
from experiments.sweep.space import Space, as_json, grid_points, parse_space
from jaxsparse.training import ConfigError, RunError
from jaxsparse.training.rows import to_line

PROG = "python -m experiments.sweep"


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
    """seeds of each trial, the first ones of the run; the winner is run on all of --seeds"""
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


def parse(args: Sequence[str]) -> Sweep:
    """Parse and check the words of the command; an error is one line and exit status 2."""
    families = ", ".join(FAMILIES)
    if not args or (args[0] not in FAMILIES and args[0] not in ("-h", "--help")):
        got = repr(args[0]) if args else "nothing"
        cli.fail(f"the first word must be one of {families}, got {got}")
    if args[0] not in FAMILIES:
        cli.say(f"usage: {PROG} {{{families}}} --space ... [flags]; {PROG} continual --help")
        raise SystemExit(0)
    tuned, words = FAMILIES[args[0]](), list(args[1:])
    family = tuned.family
    config = runs.hinted_config(family, words)
    flags: Any = _parse_flags(tuned, config, words, f"{PROG} {args[0]}")
    config = runs.with_absolute_paths(flags.config)
    space = parse_space(flags.space, tuned.held_out(config, config.seeds), tuned.PROBLEM)
    _check_flags(tuned, config, flags, words, space)
    return make_sweep(tuned, config, space, flags, cli.command_line(PROG, args))


def make_sweep(tuned: Tuned, config: Any, space: Space, flags: Any, command: str) -> Sweep:
    """The sweep over a space; see `Sweep`. `flags` has the attributes of `OwnFlags`."""
    points = _points(flags, space)
    digest = hashlib.sha256(to_line(_setup(tuned, config, space, flags)).encode()).hexdigest()
    name = flags.study or f"{tuned.family.label(config)}-{flags.sampler}-{digest[:8]}"
    out = runs.user_path("--out", flags.out or Path("runs") / "sweep" / name)
    if out.exists() and not out.is_dir():
        raise RunError(f"--out: {out} is a file, want a folder")
    return Sweep(tuned, config, space, points, flags, name, out, command)


def _parse_flags(tuned: Tuned, config: Any, words: list[str], prog: str) -> Any:
    """The flags of the sweep and of the run in one dataclass."""
    family = tuned.family
    settings = {field.name for field in dataclasses.fields(family.Config)}
    # Flags of the run that decide the defaults of others and are no setting, such as --preset.
    hints = [
        f for f in dataclasses.fields(family.Flags) if f.name in family.HINTS.keys() - settings
    ]
    fields = [("config", family.Config, dataclasses.field(kw_only=True))]
    fields += [(f.name, f.type, f) for f in hints]
    # A subclass: the texts of --help are those of `OwnFlags`.
    flags = dataclasses.make_dataclass("Flags", fields, bases=(OwnFlags,), frozen=True)
    try:
        return cli.parse(flags, words, flags(config=config), prog)
    except SystemExit as stop:
        if not stop.code:
            cli.say(family.describe())
        raise


def _check_flags(tuned: Tuned, config: Any, flags: Any, words: list[str], space: Space) -> None:
    """Refuse numbers out of range, and flags that would have no effect."""
    for name in ("trials", "batch", "trial_seeds"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be 1 or more, got {value}")
    if flags.sampler_seed < 0:
        raise ConfigError(f"--sampler-seed must be 0 or more, got {flags.sampler_seed}")
    if flags.trial_seeds > config.seeds:
        raise ConfigError(
            f"--trial-seeds must be at most --seeds {config.seeds}, got {flags.trial_seeds}"
        )
    if flags.study is not None and (not flags.study or "/" in flags.study):
        raise ConfigError(f"--study must be a name without /, got {flags.study!r}")
    given = cli.given(words)
    for name in given:
        if name in space:
            raise ConfigError(f"--{name.replace('_', '-')} is chosen by --space, give only one")
        if name.removeprefix("no_") in tuned.SET:
            raise ConfigError(f"--{name.replace('_', '-')} is set by the sweep and cannot be given")
    own = {field.name for field in dataclasses.fields(OwnFlags)}
    run_flags = [name for name in given if name.removeprefix("no_") not in own]
    for prefix, names in (("", run_flags), ("--space: ", list(space))):
        if message := unread.unread(tuned.family.READS, config, names):
            raise ConfigError(prefix + message)


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
