"""The flags of a sweep: its own, and those of the run whose settings it chooses."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

from experiments import cli, continual, fewshot, online, runs, unread
from experiments.sweep.definition import OwnFlags, Sweep, make_sweep
from experiments.sweep.space import Space, parse_space
from experiments.sweep.tuned import Tuned, TunedContinual, TunedFewShot, TunedOnline
from jaxsparse.training import ConfigError

PROG = "python -m experiments.sweep"


# Family -> what a sweep needs to know of it.
FAMILIES: dict[str, Callable[[], Tuned]] = {
    "continual": lambda: TunedContinual(cast(runs.Family, continual)),
    "fewshot": lambda: TunedFewShot(cast(runs.Family, fewshot)),
    "online": lambda: TunedOnline(cast(runs.Family, online)),
}


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
