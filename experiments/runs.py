"""A run from its flags to its figures: the one `main` of the families, and what it is made of."""

import atexit
import dataclasses
import datetime
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from experiments import cli, signals, unread
from experiments.drawing import draw_run, is_whole
from jaxsparse.data import DataError, fingerprint
from jaxsparse.training import ConfigError, RunError, RunFolder
from jaxsparse.training.environment import environment, use_threads_of
from jaxsparse.training.errors import trusting


class Family(Protocol):
    """A family of experiments: a module that holds what its runs differ in from the others'.

    Attributes:
      UNIT: what a row of a run's metrics is about.
      HINTS: flags that decide the defaults of the others, with their own defaults.
      READS: which settings are read when.
      FIGURES: file name -> `(rows, result) -> figure`, of a finished run.
      Config: the dataclass of a run's configuration; its fields are flags.
      Flags: the dataclass of all flags: `config`, `out`, `resume`, and those of this family.
      Report: `(configuration, path) ->` the `ConsoleReport` of a run.
      preset_config: `**HINTS -> configuration` that the flags start from.
      learn: `(configuration, data, folder, hooks) -> result`, from where the folder's run is.
    """

    __name__: str
    UNIT: str
    HINTS: dict[str, Any]
    READS: unread.Reads
    FIGURES: Any
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
        """The data of a run, checked to be what the configuration can run on."""


def name_of(family: Family) -> str:
    """The name of a family: of its folder under runs/, and in config.json."""
    return family.__name__.rpartition(".")[2]


def command_of(family: Family) -> str:
    """The command that runs a family."""
    return f"python -m {family.__name__}"


def _as_given(family: Family, opened: "Opened", args: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The configuration of the flags, and nothing more for the run's record."""
    return opened.config, {}


def main(
    name: str,
    args: Sequence[str] | None = None,
    choose: Callable[..., tuple[Any, dict[str, Any]]] = _as_given,
) -> None:
    """A command: parse the flags, run or resume, and report.

    Args:
      name: of the family's module.
      args: the flags; default: the process's.
      choose: `(family, opened, args) ->` the configuration that is run, and further entries of a
        new run's record.
    """
    family = cast(Family, sys.modules[name])
    with cli.command():
        words = list(sys.argv[1:] if args is None else args)
        opened = open_run(family, words)
        cli.use_cores(family.cores(opened.config))
        cli.use_compilation_cache()
        cli.start_backend()
        config, more = choose(family, opened, words)
        folder, result = run(family, config, opened.place, opened.resume_command, **more)
        with trusting(folder.path / "result.json"):
            family.Report(config, folder.path).result(result, folder)
        draw_missing(family, folder, result)


class Opened(NamedTuple):
    """What the flags come to: `folder` is None for a new run, whose place is `out`."""

    config: Any
    folder: RunFolder | None
    out: Path
    flags: Any
    prog: str

    @property
    def place(self) -> RunFolder | Path:
        """The folder of the run, or where to make it."""
        return self.folder or self.out

    @property
    def path(self) -> Path:
        """Where the run lies or will lie."""
        return self.folder.path if self.folder else self.out

    @property
    def resume_command(self) -> str:
        """What goes on with the run."""
        path = str(self.path)
        return cli.command_line(
            self.prog, ["--resume", f"./{path}" if path.startswith("-") else path]
        )


def open_run(family: Family, args: list[str]) -> Opened:
    """Read the flags: the configuration, and the folder of a run to resume or a new one's place."""
    folder = None
    if resumed := cli.last_value(args, "resume"):
        folder = RunFolder.open(user_path("--resume", resumed), family.UNIT)
        config = stored_config(family, folder)
    else:
        config = family.preset_config(**_hinted(args, family.HINTS))
    try:
        flags: Any = cli.parse(family.Flags, args, family.Flags(config), command_of(family))
    except SystemExit as stop:
        if not stop.code:
            cli.say(family.describe())
        raise
    _check_read(family, flags, args)
    given = _with_whole_place(flags.config)
    if folder is not None and not same_run(given, config):
        here = dataclasses.replace(given, data_dir=config.data_dir)
        differences = cli.differing(dataclasses.asdict(here), dataclasses.asdict(config))
        raise RunError(f"--resume {flags.resume}: another configuration: {differences}")
    if folder is not None:
        use_threads_of(folder.config())
        out = folder.path
    elif flags.out is None:
        out = _unnamed_place(family, given)
    else:
        out = user_path("--out", flags.out)
        RunFolder.check_new(out, {"config": dataclasses.asdict(given)})
    return Opened(given, folder, out, flags, command_of(family))


def _hinted(args: list[str], hints: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that decide the defaults of the others; errors are left to the full parse."""
    values = dict(hints)
    for name, default in hints.items():
        word = cli.last_value(args, name)
        with suppress(ValueError):
            if word is not None:
                values[name] = int(word) if isinstance(default, int) else word
    return values


def _check_read(family: Family, flags: Any, args: list[str]) -> None:
    """Refuse flags that nothing would read."""
    given = cli.given(args)
    # A run that goes on has its settings: others than its own are refused, but for this one.
    read = given if flags.resume is None else [name for name in given if name == "data_dir"]
    if message := unread.unread(family.READS, flags.config, read):
        raise ConfigError(message)
    if flags.resume is None:
        return
    for field in dataclasses.fields(family.Flags):
        if (name := field.name) not in ("config", "resume") and name in given:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is of a new run, and not read with --resume")


def user_path(flag: str, path: str | Path) -> Path:
    """The path that a flag names, `~` expanded, which no shell does after `--flag=`.

    Raises:
      RunError: there is no such user, or none with a home folder.
    """
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise RunError(f"{flag}: {path} is an address, want a folder of this machine")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise RunError(f"{flag}: {path} has no home folder in its place") from error


def _unnamed_place(family: Family, config: Any) -> Path:
    """A folder for a run whose user names none; no other run started with it has the same."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    label = f"{family.label(config)}-{now}"
    place = RunFolder.create_unnamed(Path("runs") / name_of(family) / label)

    def remove_unused():
        with suppress(OSError):  # it holds the run
            place.rmdir()

    atexit.register(remove_unused)
    signals.at_end.append(remove_unused)
    return place


def ready_run(
    family: Family, place: RunFolder | Path, config: Any, data: Any, **more: Any
) -> RunFolder:
    """The folder of a run on this data: the one that is there, or a new one.

    A new one's record holds what is needed to tell how its numbers were made.

    Args:
      family: what it is a run of.
      place: the folder of a run, or where to make a new one.
      config: the run's configuration.
      data: what was read.
      **more: further entries of a new run's record.

    Raises:
      RunError: the run is of other data, or there is no place for a new one.
    """
    digest = fingerprint(data)
    if isinstance(place, RunFolder):
        if place.config().get("data", digest) != digest:
            where = f"--data-dir {config.data_dir}" if config.data_dir else "the data read now"
            raise RunError(
                f"{place.path} is a run on other data than {where} holds; name with --data-dir"
                " where its data lies"
            )
        return place
    record = {
        "experiment": name_of(family),
        "config": dataclasses.asdict(_with_whole_place(config)),
        "data": digest,
        **environment(getattr(config, "blocks", None)),  # of networks that have Conv4's
        **more,
    }
    return RunFolder.create(place, record, family.UNIT)


def _with_whole_place(config: Any) -> Any:
    """The configuration, its folder of data as one finds it from anywhere."""
    place = config.data_dir
    if place is None or "://" in place:  # TensorFlow Datasets reads from elsewhere, too
        return config
    whole = user_path("--data-dir", place).absolute()
    return dataclasses.replace(config, data_dir=str(whole))


def _load(family: Family, config: Any, resumed: bool) -> Any:
    """The data of a run; where a run that goes on finds none, the message says what to do."""
    try:
        return family.load_data(config)
    except DataError as error:
        if not resumed:
            raise
        raise DataError(f"{error}; data that has moved is named with --data-dir") from error


def same_run(one: Any, other: Any) -> bool:
    """Whether two configurations are of the same run: where its data lies is no part of it."""
    return dataclasses.replace(one, data_dir=other.data_dir) == other


def run(
    family: Family,
    config: Any,
    place: RunFolder | Path,
    resume_command: str,
    **more: Any,
) -> tuple[RunFolder, dict[str, Any]]:
    """Take a run to its end from wherever it is; its figures are `draw_missing`'s.

    Args:
      family: what it is a run of.
      config: the run's configuration.
      place: the folder of a run, or where to make a new one.
      resume_command: what goes on with the run when it is stopped.
      **more: further entries of a new run's record.

    Returns:
      The folder of the finished run, and the content of its result.json.
    """
    folder = None if isinstance(place, Path) else place
    result = folder.result() if folder else None
    if result is None:
        data = _load(family, config, resumed=folder is not None)
        folder = ready_run(family, place, config, data, **more)
        with (
            cli.saving_on_signal(resume_command) as should_stop,
            family.Report(config, folder.path) as report,
        ):
            result = family.learn(config, data, folder, report.hooks(should_stop))
    assert folder is not None
    return folder, result


def draw_missing(family: Family, folder: RunFolder, result: dict[str, Any]) -> None:
    """Draw those of a finished run's figures that are missing or damaged.

    Asked of every finished run: one may have been killed between its result and its figures. Its
    result is there: a figure that cannot be drawn is a warning.

    Raises:
      WriteError: one cannot be written.
    """
    figures = {
        name: draw for name, draw in family.FIGURES.items() if not is_whole(folder.path / name)
    }
    for name, why in draw_run(folder.path, figures, folder.rows(), result).items():
        warnings.warn(f"{folder.path / name} is not drawn: {why}", stacklevel=2)


def preset_flags(values: Mapping[str, Any], hidden: Sequence[str]) -> str:
    """Settings as the flags that make them."""
    shown = {n: v for n, v in values.items() if n not in hidden and v is not None}
    return " ".join(_flag(name.replace("_", "-"), value) for name, value in shown.items())


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


def open_if_there(path: Path, unit: str) -> RunFolder | None:
    """The folder of the run at `path`; None where there is none."""
    return RunFolder.open(path, unit) if RunFolder.is_there(path) else None


def stored_config(family: Family, folder: RunFolder) -> Any:
    """The configuration of a run; what was no field yet when it was made has its default.

    Raises:
      RunError: it is not one of this family.
    """
    record = folder.config()
    stored = record.get("config")
    try:
        if record.get("experiment", name_of(family)) != name_of(family):
            raise ConfigError(f"its experiment is {record['experiment']!r}")
        if not isinstance(stored, dict):
            raise ConfigError(f"want a dict under 'config', got {stored!r}")
        fields = {field.name for field in dataclasses.fields(family.Config)}
        if unknown := sorted(stored.keys() - fields):
            raise ConfigError(f"it has no {', '.join(unknown)}")
        return family.Config(**stored)
    except ConfigError as error:
        raise RunError(
            f"{folder.path / 'config.json'} is no run of {name_of(family)}: {error}"
        ) from error
