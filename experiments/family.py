"""A family of experiments: what its module has, and its flags and settings."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from experiments import cli, unread
from jaxsparse.training import RunFolder, settings


class Family(Protocol):
    """A family of experiments: a module with what is specific to its runs.

    Attributes:
      UNIT: what a row of the metrics stands for: "epoch", "task" or "interval".
      HINTS: the flags that decide the defaults of the other flags, with their own defaults.
      READS: which settings are read when.
      FIGURES: file name -> `(rows, result) -> figure` of a finished run.
      CAPTIONS: file name -> what the figure shows.
      COMPARED: file name -> `(list of drawing.Shown) -> figure` that compares runs.
      Config: the dataclass of a run's configuration; its fields are flags.
      Flags: the dataclass of all flags: `config`, `out`, `resume`, and those of this family.
      Report: `(configuration, path) -> ConsoleReport`.
      preset_config: `**HINTS -> configuration`, the defaults of the flags.
      record: `(configuration, data) ->` further entries of a new run's record; it may be absent.
      learn: `(configuration, data, folder, hooks) -> result`; resumes the folder's run.
    """

    __name__: str
    UNIT: str
    HINTS: dict[str, Any]
    READS: unread.Reads
    FIGURES: Any
    CAPTIONS: Any
    COMPARED: Any
    Config: Any
    Flags: Any
    Report: Any
    preset_config: Any
    learn: Any

    def describe(self) -> str:
        """What --help adds: the presets in full."""

    def label(self, config: Any, /) -> str:
        """The start of the name of a new run's folder."""

    def cores(self, config: Any, /) -> int:
        """How many cores a run uses."""

    def load_data(self, config: Any, /) -> Any:
        """The data of a run, checked against the configuration."""


def name_of(family: Family) -> str:
    """The name of a family, as used for its folder under runs/ and in config.json."""
    return family.__name__.rpartition(".")[2]


def command_of(family: Family) -> str:
    """The command that runs a family."""
    return f"python -m {family.__name__}"


def hinted_config(family: Family, args: list[str]) -> Any:
    """The defaults of the flags, which the `HINTS` flags among `args` decide.

    Errors in these flags are left to the full parse.
    """
    values = dict(family.HINTS)
    for name, default in family.HINTS.items():
        word = cli.last_value(args, name)
        with suppress(ValueError):
            if word is not None:
                values[name] = int(word) if isinstance(default, int) else word
    return family.preset_config(**values)


def defaults_of(family: Family, config: Any) -> Any:
    """The settings of a run that only names its method and data: the preset's."""
    hints = {name: getattr(config, name, default) for name, default in family.HINTS.items()}
    return family.preset_config(**hints)


def settings_read(family: Family, config: Any) -> dict[str, Any]:
    """The settings of a run that its method reads, by name."""
    values = dataclasses.asdict(config)
    return {
        name: value for name, value in values.items() if unread.is_read(family.READS, config, name)
    }


def command_for(family: Family, config: Any) -> str:
    """A command that makes a new run with the same settings.

    Examples:
      >>> command_for(fewshot, FewShotConfig(shots=1, method="fomaml", width=32, ...))
      'python -m experiments.fewshot --method=fomaml --shots=1'
    """
    plain, default = family.preset_config(**family.HINTS), defaults_of(family, config)
    words: list[str] = []
    for name, value in settings_read(family, config).items():
        base = plain if name in family.HINTS else default
        if value != getattr(base, name):
            words += _words(name.replace("_", "-"), value)
    return cli.command_line(command_of(family), words)


def preset_flags(values: Mapping[str, Any], hidden: Sequence[str]) -> str:
    """Settings written as flags."""
    shown = {n: v for n, v in values.items() if n not in hidden and v is not None}
    words = (_words(name.replace("_", "-"), value) for name, value in shown.items())
    return " ".join(word for flag in words for word in flag)


def _words(name: str, value: Any) -> list[str]:
    """A flag and its value as words of a command line."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, tuple):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]


def stored_config(family: Family, folder: RunFolder) -> Any:
    """The configuration of a run; fields that are newer than the run have their defaults.

    Raises:
      RunError: the run is not one of this family.
    """
    return settings.stored_config(folder, family.Config, name_of(family))
