"""The `main` of all families: a run from its flags to its figures."""

import atexit
import dataclasses
import datetime
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

from experiments import cli, distributed, loggers, page, signals, unread
from experiments.drawing import draw_run, is_whole
from experiments.family import Family, command_of, hinted_config, name_of, stored_config
from experiments.loggers import Loggers
from experiments.report import SilentReport
from jaxsparse.data import DataError, fingerprint
from jaxsparse.training import ConfigError, RunError, RunFolder, processes
from jaxsparse.training.environment import environment, use_threads_of
from jaxsparse.training.errors import one_line, reading, trusting


def _as_given(family: Family, opened: "Opened", args: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The configuration of the flags, with no further entries for the run's record."""
    return opened.config, {}


def main(
    name: str,
    args: Sequence[str] | None = None,
    choose: Callable[..., tuple[Any, dict[str, Any]]] = _as_given,
) -> None:
    """Parse the flags, run or resume, and report.

    Args:
      name: name of the family's module.
      args: the flags; default: those of the process.
      choose: `(family, opened, args) -> (configuration, entries)`; the configuration is run, and
        the entries are added to the record of a new run.
    """
    family = cast(Family, sys.modules[name])
    with cli.command():
        words = list(sys.argv[1:] if args is None else args)
        opened = read_flags(family, words)
        with distributed.joined(opened.flags.hosts):
            cli.use_cores(family.cores(opened.config))
            cli.use_compilation_cache()
            cli.start_backend()
            distributed.check_devices()
            opened = place_run(family, opened)
            config, more = choose(family, opened, words)
            with Loggers(opened.flags.loggers) as log:
                place, command = opened.place, opened.resume_command
                folder, result = run(family, config, place, command, log, **more)
                if processes.is_first():
                    with trusting(folder.path / "result.json"):
                        family.Report(config, folder.path).result(result, folder)
                    draw_missing(family, folder, result)
                    figures = [folder.path / name for name in family.FIGURES]
                    log.finish(folder, result, [path for path in figures if is_whole(path)])


class Opened(NamedTuple):
    """The parsed flags and the run they name.

    Attributes:
      config: the run's configuration.
      folder: the folder of the run to resume; None for a new one.
      out: where a new run is made; None: not decided yet.
      flags: the parsed flags.
      prog: the command.
    """

    config: Any
    folder: RunFolder | None
    out: Path | None
    flags: Any
    prog: str

    @property
    def place(self) -> RunFolder | Path:
        """The folder of the run, or where to make it."""
        return self.folder or self.path

    @property
    def path(self) -> Path:
        """The path of the run's folder, existing or not."""
        place = self.folder.path if self.folder else self.out
        assert place is not None
        return place

    @property
    def resume_command(self) -> str:
        """The command that resumes the run."""
        path = str(self.path)
        place = f"./{path}" if path.startswith("-") else path
        words = [*self.flags.hosts.words(), *self.flags.loggers.words()]
        return cli.command_line(self.prog, ["--resume", place, *words])


def read_flags(family: Family, args: list[str]) -> Opened:
    """Parse the flags, and open the run to resume."""
    folder = None
    if resumed := cli.last_value(args, "resume"):
        folder = RunFolder.open(user_path("--resume", resumed), family.UNIT)
        default = family.Flags(stored_config(family, folder), loggers=loggers.of_run(folder.path))
    else:
        default = family.Flags(hinted_config(family, args))
    config = default.config
    try:
        flags: Any = cli.parse(family.Flags, args, default, command_of(family))
    except SystemExit as stop:
        if not stop.code:
            cli.say(family.describe())
        raise
    _check_read(family, flags, args)
    distributed.check(flags.hosts)
    loggers.check(flags.loggers)
    given = with_absolute_paths(flags.config)
    if folder is not None and not same_run(given, config):
        here = dataclasses.replace(given, data_dir=config.data_dir)
        differences = cli.differing(dataclasses.asdict(here), dataclasses.asdict(config))
        raise RunError(f"--resume {flags.resume}: the configuration differs: {differences}")
    if folder is not None:
        use_threads_of(folder.config())
    return Opened(given, folder, None, flags, command_of(family))


def place_run(family: Family, opened: Opened) -> Opened:
    """Make an empty folder for a new run, or check the one that --out names."""

    def place() -> str:
        if opened.flags.out is None:
            return str(_unnamed_place(family, opened.config))
        out = user_path("--out", opened.flags.out)
        RunFolder.check_new(out, {"config": dataclasses.asdict(opened.config)})
        return str(out)

    return opened if opened.folder else opened._replace(out=Path(processes.from_first(place)))


def _check_read(family: Family, flags: Any, args: list[str]) -> None:
    """Refuse flags that would have no effect."""
    given = cli.given(args)
    # A resumed run keeps its settings. Only this one may change; `read_flags` refuses others.
    read = given if flags.resume is None else [name for name in given if name == "data_dir"]
    if message := unread.unread(family.READS, flags.config, read):
        raise ConfigError(message)
    if flags.resume is None:
        return
    for field in dataclasses.fields(family.Flags):
        if (name := field.name) not in ("config", "resume") and name in given:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is for new runs and is not read with --resume")


def user_path(flag: str, path: str | Path) -> Path:
    """The path that a flag names, with `~` expanded: shells do not expand it after `--flag=`."""
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise RunError(f"{flag}: {path} is a URL, want a folder on this machine")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise RunError(f"{flag}: {path} names no home folder") from error


def new_path(flag: str, path: str | Path) -> Path:
    """A path that a flag names and where nothing is yet, below a folder that can be written to."""
    place = user_path(flag, path)
    with reading(place):
        if place.exists() or place.is_symlink():
            raise RunError(f"{flag}: {place} is there already; name another")
        parent = next(p for p in place.absolute().parents if p.exists() or p.is_symlink())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise RunError(f"{flag}: {parent} is not a folder that can be written to")
    return place


def _unnamed_place(family: Family, config: Any) -> Path:
    """Create a folder for a run without --out; runs started at the same time get different ones."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    label = f"{family.label(config)}-{now}"
    place = RunFolder.create_unnamed(Path("runs") / name_of(family) / label)

    def remove_unused():
        with suppress(OSError):  # not empty: it holds the run
            place.rmdir()

    atexit.register(remove_unused)
    signals.at_end.append(remove_unused)
    return place


def ready_run(
    family: Family, place: RunFolder | Path, config: Any, data: Any, **more: Any
) -> RunFolder:
    """The existing folder of a run, or a new one with the record of how its numbers are made.

    `more` are further entries of a new record. An existing run on other data is a `RunError`.
    """
    digest = fingerprint(data)
    settings_here = dataclasses.asdict(with_absolute_paths(config))
    processes.check_same({"data": digest, **settings_here, "data_dir": None})
    if isinstance(place, RunFolder):
        if place.config().get("data", digest) != digest:
            here = f"that in {config.data_dir}" if config.data_dir else "what is read now"
            raise RunError(
                f"{place.path} is a run on other data than {here}; name the folder of its"
                " data with --data-dir"
            )
        return place
    record = {
        "experiment": name_of(family),
        "config": settings_here,
        "data": digest,
        **getattr(family, "record", lambda config, data: {})(config, data),
        **environment(getattr(config, "blocks", None)),  # only for networks with Conv4's blocks
        **more,
    }
    processes.check_same(record["versions"] | record["environment"])
    if not processes.is_first():
        return RunFolder(place, family.UNIT)
    return RunFolder.create(place, record, family.UNIT)


def with_absolute_paths(config: Any) -> Any:
    """The configuration with absolute paths of the folders that it names."""
    whole = {}
    for name in ("data_dir", "theta_from"):
        place = getattr(config, name, None)
        if place is not None and "://" not in place:  # TensorFlow Datasets also reads from URLs
            whole[name] = str(user_path(f"--{name.replace('_', '-')}", place).absolute())
    return dataclasses.replace(config, **whole) if whole else config


def _load(family: Family, config: Any, resumed: bool) -> Any:
    """The data of a run; for a resumed run, the error message adds what to do."""
    try:
        return family.load_data(config)
    except DataError as error:
        if not resumed:
            raise
        raise DataError(
            f"{error}; if the data has moved, name its folder with --data-dir"
        ) from error


def same_run(one: Any, other: Any) -> bool:
    """Whether two configurations are equal; the folder of the data may differ."""
    return dataclasses.replace(one, data_dir=other.data_dir) == other


def run(
    family: Family,
    config: Any,
    place: RunFolder | Path,
    resume_command: str,
    log: Loggers | None = None,
    /,
    **more: Any,
) -> tuple[RunFolder, dict[str, Any]]:
    """Start or resume a run and finish it; a finished one is only read.

    Args:
      family: the family of the run.
      config: the run's configuration.
      place: the folder of an existing run, or the path of a new one.
      resume_command: the command to show if the run is stopped.
      log: the loggers; default: TensorBoard.
      **more: further entries of a new run's record.

    Returns:
      The folder of the run and the content of its result.json. Figures are not drawn here: see
      `draw_missing`.
    """
    folder = None if isinstance(place, Path) else place
    result = processes.from_first(lambda: folder.result() if folder else None)
    if result is None:
        data = _load(family, config, resumed=folder is not None)
        folder = ready_run(family, place, config, data, **more)
        with (
            cli.saving_on_signal(resume_command) as should_stop,
            _report(family, config, folder) as report,
        ):
            hooks = report.hooks(should_stop)
            if log is not None:
                hooks = log.hooks(hooks, folder, report.print)
            result = family.learn(config, data, folder, hooks)
    assert folder is not None
    return folder, result


def _report(family: Family, config: Any, folder: RunFolder) -> Any:
    return family.Report(config, folder.path) if processes.is_first() else SilentReport()


def draw_missing(family: Family, folder: RunFolder, result: dict[str, Any]) -> None:
    """Draw the figures of a finished run that are missing or damaged, and write its report.

    A run may have been killed between its result and its figures. Since the result exists, a figure
    that cannot be drawn and a report that cannot be written are only warnings; a figure that cannot
    be written is a `WriteError`.
    """
    figures = {
        name: draw for name, draw in family.FIGURES.items() if not is_whole(folder.path / name)
    }
    for name, why in draw_run(folder.path, figures, folder.rows(), result).items():
        warnings.warn(f"{folder.path / name} is not drawn: {why}", stacklevel=2)
    try:
        page.write_page(family, folder, result)
    except Exception as error:  # the run is finished: no error in its report may fail it
        why = f"{type(error).__name__}, {one_line(error)}"
        warnings.warn(f"{folder.path / page.NAME} is not written: {why}", stacklevel=2)


def open_if_there(path: Path, unit: str) -> RunFolder | None:
    """The folder of the run at `path`, or None."""
    return RunFolder.open(path, unit) if RunFolder.is_there(path) else None
