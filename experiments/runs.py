"""What every experiment does with its flags and the folder of a run: open, create, go on."""

import atexit
import dataclasses
import datetime
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from experiments import cli, signals, unread

if TYPE_CHECKING:
    from jaxsparse.training import Hooks, RunFolder


class Experiment(NamedTuple):
    """An experiment: its command line, and what a run of it is made of.

    Attributes:
      name: of its folder under runs/, and in config.json.
      config_type: the dataclass of a run's configuration; its fields are flags.
      hints: flags that decide the defaults of the others, with their own defaults.
      preset: `hints' values -> configuration` that the flags start from.
      describe: what --help adds: the presets in full.
      label: `configuration -> str`, the start of a new run's folder name.
      load: `configuration -> data`, checked to be what the configuration can run on.
      learn: `(configuration, data, folder, hooks) -> result`, from where the folder's run is.
      report: `(configuration, path) ->` what shows a run in progress, a context with `hooks`.
      figures: `() -> {file name: (rows, result) -> figure}` of a finished run.
      reads: which settings are read when.
      presets: whether there are presets by name.
      unit: what a row of its metrics is about.
      extra: further flags: name -> (type, default, help).
    """

    name: str
    config_type: type
    hints: Mapping[str, Any]
    preset: Callable[[SimpleNamespace], Any]
    describe: Callable[[], str]
    label: Callable[[Any], str]
    load: Callable[[Any], Any]
    learn: Callable[[Any, Any, "RunFolder", "Hooks"], dict[str, Any]]
    report: Callable[[Any, Path], Any]
    figures: Callable[[], Mapping[str, Callable[..., Any]]]
    reads: unread.Reads
    presets: bool = True
    unit: str = "epoch"
    extra: Mapping[str, tuple[Any, Any, str]] = {}

    @property
    def prog(self) -> str:
        """The command."""
        return f"python -m experiments.{self.name}"


class Opened(NamedTuple):
    """What the flags come to: `folder` is None for a new run, whose place is `out`."""

    config: Any
    folder: "RunFolder | None"
    out: Path
    flags: Any
    prog: str

    @property
    def place(self) -> "RunFolder | Path":
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


def open_run(experiment: Experiment, args: list[str]) -> Opened:
    """Read the flags: the configuration, and the folder of a run to resume or a new one's place."""
    from jaxsparse.training import RunError, RunFolder
    from jaxsparse.training.environment import use_threads_of

    first = _first_look(experiment, args)
    folder = None
    if first.resume:
        folder = RunFolder.open(user_path("--resume", first.resume), experiment.unit)
    config = experiment.preset(first) if folder is None else stored_config(experiment, folder)
    flags_type = _flags_type(experiment)
    try:
        flags: Any = cli.parse(flags_type, args, flags_type(config), experiment.prog)
    except SystemExit as stop:
        if not stop.code:
            cli.say(experiment.describe())
        raise
    _check_read(experiment, flags, args)
    given = _with_whole_place(flags.config)
    if folder is not None and not same_run(given, config):
        here = dataclasses.replace(given, data_dir=config.data_dir)
        differences = cli.differing(dataclasses.asdict(here), dataclasses.asdict(config))
        raise RunError(f"--resume {flags.resume}: another configuration: {differences}")
    if folder is not None:
        use_threads_of(folder.config())
        out = folder.path
    elif flags.out is None:
        out = _unnamed_place(experiment, given)
    else:
        out = user_path("--out", flags.out)
        RunFolder.check_new(out, {"config": dataclasses.asdict(given)})
    return Opened(given, folder, out, flags, experiment.prog)


def _check_read(experiment: Experiment, flags: Any, args: list[str]) -> None:
    """Refuse flags that nothing would read."""
    from jaxsparse.training import ConfigError

    given = cli.given(args)
    # A run that goes on has its settings: others than its own are refused, but for this one.
    read = given if flags.resume is None else [name for name in given if name == "data_dir"]
    if message := unread.unread(experiment.reads, flags.config, read):
        raise ConfigError(message)
    if flags.resume is None:
        return
    for name in ("preset", "out", *experiment.extra):
        if name in given:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is of a new run, and not read with --resume")


def user_path(flag: str, path: str | Path) -> Path:
    """The path that a flag names, `~` expanded, which no shell does after `--flag=`.

    Raises:
      RunError: there is no such user, or none with a home folder.
    """
    from jaxsparse.training import RunError

    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise RunError(f"{flag}: {path} is an address, want a folder of this machine")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise RunError(f"{flag}: {path} has no home folder in its place") from error


def _unnamed_place(experiment: Experiment, config: Any) -> Path:
    """A folder for a run whose user names none; no other run started with it has the same."""
    from jaxsparse.training import RunFolder

    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    label = f"{experiment.label(config)}-{now}"
    place = RunFolder.create_unnamed(Path("runs") / experiment.name / label)

    def remove_unused():
        with suppress(OSError):  # it holds the run
            place.rmdir()

    atexit.register(remove_unused)
    signals.at_end.append(remove_unused)
    return place


def ready_run(
    experiment: Experiment, place: "RunFolder | Path", config: Any, data: Any, **more: Any
) -> "RunFolder":
    """The folder of a run on this data: the one that is there, or a new one.

    A new one's record holds what is needed to tell how its numbers were made.

    Args:
      experiment: what it is a run of.
      place: the folder of a run, or where to make a new one.
      config: the run's configuration.
      data: what was read.
      **more: further entries of a new run's record.

    Raises:
      RunError: the run is of other data, or there is no place for a new one.
    """
    from jaxsparse.data import fingerprint
    from jaxsparse.training import RunError, RunFolder
    from jaxsparse.training.environment import environment

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
        "experiment": experiment.name,
        "config": dataclasses.asdict(_with_whole_place(config)),
        "data": digest,
        **environment(getattr(config, "blocks", None)),  # of networks that have Conv4's
        **more,
    }
    return RunFolder.create(place, record, experiment.unit)


def _with_whole_place(config: Any) -> Any:
    """The configuration, its folder of data as one finds it from anywhere."""
    place = config.data_dir
    if place is None or "://" in place:  # TensorFlow Datasets reads from elsewhere, too
        return config
    whole = user_path("--data-dir", place).absolute()
    return dataclasses.replace(config, data_dir=str(whole))


def _load(experiment: Experiment, config: Any, resumed: bool) -> Any:
    """The data of a run; where a run that goes on finds none, the message says what to do."""
    from jaxsparse.data import DataError

    try:
        return experiment.load(config)
    except DataError as error:
        if not resumed:
            raise
        raise DataError(f"{error}; data that has moved is named with --data-dir") from error


def same_run(one: Any, other: Any) -> bool:
    """Whether two configurations are of the same run: where its data lies is no part of it."""
    return dataclasses.replace(one, data_dir=other.data_dir) == other


def run(
    experiment: Experiment,
    config: Any,
    place: "RunFolder | Path",
    resume_command: str,
    **more: Any,
) -> tuple["RunFolder", dict[str, Any]]:
    """Take a run to its end from wherever it is; its figures are `draw_missing`'s.

    Args:
      experiment: what it is a run of.
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
        data = _load(experiment, config, resumed=folder is not None)
        folder = ready_run(experiment, place, config, data, **more)
        with (
            cli.saving_on_signal(resume_command) as should_stop,
            experiment.report(config, folder.path) as report,
        ):
            result = experiment.learn(config, data, folder, report.hooks(should_stop))
    assert folder is not None
    return folder, result


def draw_missing(experiment: Experiment, folder: "RunFolder", result: dict[str, Any]) -> None:
    """Draw those of a finished run's figures that are missing or damaged.

    Asked of every finished run: one may have been killed between its result and its figures. Its
    result is there: a figure that cannot be drawn is a warning.

    Raises:
      WriteError: one cannot be written.
    """
    from experiments.plots import draw_run, is_whole

    figures = {
        name: draw
        for name, draw in experiment.figures().items()
        if not is_whole(folder.path / name)
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


def _flags_type(experiment: Experiment) -> type:
    import tyro

    def field(name, kind, default, text):
        return (name, Annotated[kind, tyro.conf.arg(help=text)], default)

    fields = [
        ("config", experiment.config_type),
        *(
            [field("preset", str | None, None, "settings to start from; listed below")]
            if experiment.presets
            else []
        ),
        field(
            "out", Path | None, None,
            f"folder for the run; default: a new one under runs/{experiment.name}",
        ),
        field(
            "resume", Path | None, None, "folder of a run to go on with; its configuration is used"
        ),
        *(field(name, *rest) for name, rest in experiment.extra.items()),
    ]  # fmt: skip
    return dataclasses.make_dataclass("Flags", fields, frozen=True)


def _first_look(experiment: Experiment, args: list[str]) -> SimpleNamespace:
    """The flags that decide the defaults of the others; errors are left to the full parse."""
    names = ("preset", "resume", *experiment.hints)
    first = SimpleNamespace(**{"preset": None, "resume": None, **experiment.hints})
    for name in names:
        word = cli.last_value(args, name)
        if isinstance(getattr(first, name), int):
            with suppress(ValueError, TypeError):
                setattr(first, name, int(word))  # type: ignore[arg-type]
        elif word is not None:
            setattr(first, name, word)
    return first


def open_if_there(path: Path, unit: str) -> "RunFolder | None":
    """The folder of the run at `path`; None where there is none."""
    from jaxsparse.training import RunFolder

    return RunFolder.open(path, unit) if RunFolder.is_there(path) else None


def stored_config(experiment: Experiment, folder: "RunFolder") -> Any:
    """The configuration of a run; what was no field yet when it was made has its default.

    Raises:
      RunError: it is not one of this experiment.
    """
    from jaxsparse.training import ConfigError, RunError

    record = folder.config()
    stored = record.get("config")
    try:
        if record.get("experiment", experiment.name) != experiment.name:
            raise ConfigError(f"its experiment is {record['experiment']!r}")
        if not isinstance(stored, dict):
            raise ConfigError(f"want a dict under 'config', got {stored!r}")
        fields = {field.name for field in dataclasses.fields(experiment.config_type)}
        if unknown := sorted(stored.keys() - fields):
            raise ConfigError(f"it has no {', '.join(unknown)}")
        return experiment.config_type(**stored)
    except ConfigError as error:
        raise RunError(
            f"{folder.path / 'config.json'} is no run of {experiment.name}: {error}"
        ) from error
