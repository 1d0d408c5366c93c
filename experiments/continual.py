"""Continual learning on a stream of tasks: learn, measure after every task, report.

python -m experiments.continual --stream rotations --method sparse-lamaml --seeds 5
python -m experiments.continual --stream permutations --method er --data glyphs
python -m experiments.continual --stream rotations --scan
python -m experiments.continual --resume runs/continual/...
"""

import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments import cli, runs, unread

if TYPE_CHECKING:
    from jaxsparse.data import TaskStream
    from jaxsparse.training import RunFolder
    from jaxsparse.training.continual import ContinualConfig


class Grid(NamedTuple):
    """What a scan goes through; of what is empty, only the configuration's own value."""

    inner_lr: tuple[float, ...] = ()
    mask_lr: tuple[float, ...] = ()
    theta_lr: tuple[float, ...] = ()
    glances: tuple[int, ...] = ()

    def or_usual(self, config: "ContinualConfig") -> "Grid":
        """This grid, or where it is empty the usual one of the configuration's method."""
        from jaxsparse.training.continual import META_METHODS, used_rates

        if any(self):
            return self
        usual: dict[str, tuple[float, ...]] = {
            "inner_lr": (0.05, 0.1, 0.15),
            "mask_lr": (0.3, 0.75, 1.7),
            "theta_lr": tuple(config.theta_lr * factor for factor in (0.3, 1.0, 3.0)),
        }
        glances = (5, 10) if config.method in META_METHODS else ()
        return Grid(**{name: usual[name] for name in used_rates(config)}, glances=glances)


def experiment() -> runs.Experiment:
    """The command line of continual learning."""
    from experiments import continual_presets as presets
    from experiments.report import StreamReport
    from jaxsparse.training.continual import ContinualConfig, run_stream

    return runs.Experiment(
        name="continual",
        config_type=ContinualConfig,
        hints={"stream": "rotations", "method": "sparse-lamaml", "data": None, "memories": 0},
        preset=lambda f: presets.preset_config(f.stream, f.method, f.data, f.memories),
        describe=presets.describe,
        label=lambda c: f"{c.stream}-{c.data}-{c.method}",
        load=load_stream,
        learn=run_stream,
        report=StreamReport,
        figures=_figures,
        reads=unread.CONTINUAL,
        presets=False,
        unit="task",
        extra={
            "scan": (bool, False, "first choose rates and glances on held-out training images"),
            "grid_inner_lr": (
                tuple[float, ...],
                (),
                "alpha_0 to scan; without any grid, of what the method uses: alpha_0 0.05 0.1 0.15,"
                " gamma_m 0.3 0.75 1.7, the rate of theta times 0.3 1 3, and glances 5 10",
            ),
            "grid_mask_lr": (tuple[float, ...], (), "gamma_m to scan"),
            "grid_theta_lr": (tuple[float, ...], (), "rates of theta to scan"),
            "grid_glances": (tuple[int, ...], (), "glances to scan"),
        },
    )


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, run or resume, and report."""
    with cli.command():
        # Imported here and not above: Ctrl-C during these seconds is one line, too.
        from experiments.report import StreamReport
        from jaxsparse.training.errors import trusting

        own, words = experiment(), list(sys.argv[1:] if args is None else args)
        opened = runs.open_run(own, words)
        config, more = opened.config, {}
        grid = grid_of(opened, words)
        cli.use_all_cores()
        cli.use_compilation_cache()
        cli.start_backend()
        if grid is not None:
            load_stream(config)  # refuses here what cannot be run
            place_given = [] if opened.flags.out else ["--out", opened.path]
            again = cli.command_line(own.prog, [*words, *place_given])
            config, more["scan"] = scan(config, grid, opened.out, again)
        folder, result = runs.run(own, config, opened.place, opened.resume_command, **more)
        with trusting(folder.path / "result.json"):
            StreamReport(config, folder.path).result(result)
        runs.draw_missing(own, folder, result)


def grid_of(opened: runs.Opened, args: Sequence[str]) -> Grid | None:
    """The grid that the flags ask to scan, None without --scan; checked before anything is run.

    Raises:
      ConfigError: a grid that cannot be scanned, or would not be.
    """
    from jaxsparse.training import ConfigError

    names = [name for name in Grid._fields if f"grid_{name}" in cli.given(args)]
    if not opened.flags.scan:
        if names:
            raise ConfigError(f"{_grid_flag(names[0])} is read with --scan only")
        return None
    given = Grid(*(getattr(opened.flags, f"grid_{name}") for name in Grid._fields))
    for name in names:
        _check_axis(opened.config, name, getattr(given, name))
    return given.or_usual(opened.config)


def _grid_flag(name: str) -> str:
    return f"--grid-{name.replace('_', '-')}"


def _check_axis(config: "ContinualConfig", name: str, values: tuple[Any, ...]) -> None:
    from jaxsparse.training import ConfigError
    from jaxsparse.training.continual import used_rates

    flag = _grid_flag(name)
    if not values:
        raise ConfigError(f"{flag} must have a value or more, got none")
    if len(set(values)) < len(values):
        raise ConfigError(f"{flag} must have different values, got {values}")
    if name not in (*used_rates(config), "glances"):
        raise ConfigError(f"{flag} is not read with --method {config.method}")
    for value in values:
        try:
            dataclasses.replace(config, validation=True, **{name: value})
        except ConfigError as error:
            raise ConfigError(f"{flag}: {error}") from error


def load_stream(config: "ContinualConfig") -> "TaskStream":
    """The stream that a configuration names, with the images it is measured on; checked."""
    from jaxsparse import data
    from jaxsparse.data import streams
    from jaxsparse.training import memory

    # What grows fastest with the tasks, before they are made.
    matrices = 4 * config.seeds * (config.tasks + 1) * config.tasks
    memory.check_fits(
        matrices, lambda: matrices, f"accuracies of tasks {config.tasks} for seeds {config.seeds}"
    )
    train = data.load_labelled(config.data, "train", config.data_dir)
    if config.validation:
        train, test = streams.hold_out(train)
    else:
        test = data.load_labelled(config.data, "test", config.data_dir)
    if config.stream == "split-cifar10":
        stream = streams.split(train, test)
    else:
        build = streams.rotations if config.stream == "rotations" else streams.permutations
        stream = build(train, test, config.tasks, config.data_seed)
    _check(config, stream)
    _check_size(config, stream, config.seeds)
    return stream


def _check_size(config: "ContinualConfig", stream: "TaskStream", runs: int) -> None:
    """Refuse what cannot be run, or cannot be held in memory."""
    import jax

    from jaxsparse.training import ConfigError, memory
    from jaxsparse.training.continual import default_rates, make_program

    program = make_program(config, stream)
    steps = program.batches_per_task * stream.num_tasks
    if steps >= 2**31:
        raise ConfigError(f"batches of all tasks and epochs must be below 2^31, got {steps}")
    rows = config.memories + 4 * config.replay_batch_size
    rows_bytes = rows * stream.train.images[:1].nbytes

    def state() -> int:
        key = jax.random.key(config.seed)
        kept = jax.eval_shape(program.init, key, default_rates(config), stream)
        return memory.bytes_of((kept, jax.eval_shape(program.schedule, key, stream)))

    arrays = 8 * steps * config.batch_size + 4 * (stream.num_tasks + 1) ** 2
    memory.check_fits(
        runs * (400 * (config.width + 1000) ** 2 + 2 * rows_bytes + arrays),
        lambda: runs * (state() + rows_bytes),
        f"runs {runs} of width {config.width} with memories {config.memories} and"
        f" replay_batch_size {config.replay_batch_size}",
    )


def _check(config, stream):
    from jaxsparse.training import ConfigError

    if stream.num_tasks != config.tasks:
        raise ConfigError(f"tasks must be {stream.num_tasks}, pairs of classes, got {config.tasks}")
    channels = stream.train.images.shape[3]
    if config.augment and channels != 3:
        raise ConfigError(f"augment wants images of 3 channels, {config.data} has {channels}")


def scan(
    config: "ContinualConfig",
    grid: Grid,
    out: Path,
    resume_command: str,
    open_scan: Callable[[Path, str], "RunFolder | None"] = runs.open_if_there,
) -> tuple["ContinualConfig", list[dict[str, Any]]]:
    """Choose the rates and glances that retain most on held-out training images.

    One program for each number of glances runs the whole grid of rates. Its folders lie beside
    the run's own; a scan that was stopped goes on there.

    Args:
      config: the run's configuration.
      grid: what to choose among.
      out: the run's own folder.
      resume_command: what goes on with the scan when it is stopped.
      open_scan: `(path, unit) -> folder`, the scan that is at a path, None where there is none.

    Returns:
      The configuration as chosen, and what each point retained.
    """
    from experiments.report import StreamReport
    from jaxsparse.training.continual import Rates, scan_stream
    from jaxsparse.training.errors import trusting

    points = []
    axes = (getattr(grid, name) or (getattr(config, name),) for name in Rates._fields)
    rates = [Rates(*values) for values in itertools.product(*axes)]
    for glances in grid.glances or (config.glances,):
        held_out = dataclasses.replace(config, validation=True, glances=glances)
        folder, of_scan = _scan_folder(out, held_out, rates, open_scan)
        result = folder.result() if folder else None
        if result is None:
            stream = load_stream(held_out)
            _check_size(held_out, stream, len(rates) * config.seeds)
            folder = runs.ready_run(
                experiment(), folder or scan_path(out, glances), held_out, stream, **of_scan
            )
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
    """What a point retained; less than anything where that is not finite, null in its file."""
    mean = point["retained_accuracy"]["mean"]
    return mean if mean is not None and mean == mean else -math.inf


def scan_path(out: Path, glances: int) -> Path:
    """Where the scan with this number of glances lies, beside the run's own folder."""
    place = out if out.name else out.absolute()  # this folder itself
    return place.with_name(f"{place.name}-scan-{glances}-glances")


def _scan_folder(
    out: Path, config: "ContinualConfig", grid: list[Any], open_scan: Callable[..., Any]
) -> "tuple[RunFolder | None, dict[str, Any]]":
    """The folder of this scan, if there is one, and what a new one's record says of it."""
    from jaxsparse.training import RunError

    path = scan_path(out, config.glances)
    of_scan = {"grid": [rates._asdict() for rates in grid]}
    folder = open_scan(path, "task")
    if folder is None:
        return None, of_scan
    stored = runs.stored_config(experiment(), folder)
    if not runs.same_run(stored, config) or folder.config().get("grid") != of_scan["grid"]:
        raise RunError(f"{path} holds another scan; name another --out")
    return folder, of_scan


def _figures():
    from experiments import stream_plots  # not above: drawing is a slow import, wanted at the end

    return stream_plots.FIGURES


if __name__ == "__main__":
    main()
